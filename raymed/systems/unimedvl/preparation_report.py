"""What preparing data sets found and did, in lines for a person: counts, the first errors with file and line, sizes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np

from raymed.data.counts import closing, facts, table
from raymed.data.prepare import PrepareResult, require_apart
from raymed.data.prepared import Prepared
from raymed.data.sources.listing import by_reason
from raymed.job.job import Outcome
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.prepare import SequenceSurvey

COMMONEST = 5
READ_AT_ONCE = 64


def plan(surveyed: SequenceSurvey, out: str) -> Outcome:
    """What would be prepared; nothing was. A refused line is something to mend."""
    found = surveyed.survey
    require_apart(found, Folder.at(out))
    refusals = [(refusal.where, refusal.reason) for refusal in found.listing.refusals]
    lines = [
        *found.listing.notes,
        *_lines(surveyed.lines),
        f"{found.slices} samples of {len({study.patient for study in found.studies})} patients in order; "
        f"{len(refusals) or 'none'} refused",
        *(f"  {line}" for line in by_reason(refusals)),
        f"dry run: nothing was written to {out}",
    ]
    data = {"samples": found.slices, "refused": len(refusals), "datasets": surveyed.lines}
    return Outcome("\n".join(lines), data, code=2 if refusals else 0)


def summary(result: PrepareResult) -> Outcome:
    """What was prepared."""
    prepared, manifest = result.prepared, result.prepared.manifest
    quarantine = [json.loads(line) for line in prepared.folder.read("quarantine.jsonl").splitlines()]
    costs = prepared.columns(prepared.rows("all"), ["cost"])["cost"]
    lines = [
        *table({"all": manifest.patients["unlabelled"]}),
        *_lines(manifest.settings["lines"], manifest.sources),
        f"studies: {result.new} read, {result.kept} unchanged",
        f"tokens: {int(costs.sum())} in all, {int(np.median(costs))} in the middle, {int(costs.max())} at most",
        *sizes(prepared),
        f"quarantined: {manifest.quarantined} samples (quarantine.jsonl)",
        *(f"  {line}" for line in by_reason((line["where"], line["reason"]) for line in quarantine)),
        *closing(result),
    ]
    return Outcome("\n".join(lines), facts(result) | {"tokens": int(costs.sum())})


def sizes(prepared: Prepared) -> list[str]:
    """The commonest sizes of the pictures of some records, as each network sees them."""
    rows = prepared.rows("all")
    few = rows[np.linspace(0, len(rows) - 1, min(len(rows), READ_AT_ONCE)).astype(int)]
    seen: dict[str, Counter[str]] = {"input": Counter(), "output": Counter()}
    for record in prepared.read(few):
        for image in record.images:
            height, width, _ = image.pixels.shape
            seen[image.role][f"{width}x{height}"] += 1
    names = {"input": "seen by the ViT", "output": "seen by the autoencoder"}
    return [
        f"sizes {names[role]}: " + ", ".join(f"{size} ({count})" for size, count in counts.most_common(COMMONEST))
        for role, counts in seen.items()
        if counts
    ]


def _lines(counts: Mapping[str, Mapping[str, int]], divided: Mapping[str, Mapping[str, int]] | None = None) -> list[str]:
    """A line for each data set; `divided` has its samples in each split."""
    lines = []
    for name, each in counts.items():
        parts = [f"{each['lines']} lines, {each['used']} used"]
        if each["refused"]:
            parts.append(f"{each['refused']} refused")
        if divided:
            parts += [f"{split} {count}" for split, count in divided.get(name, {}).items()]
        lines.append(f"{name}: {', '.join(parts)}")
    return lines
