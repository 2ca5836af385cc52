"""What preparing lung images would do, and has done, in a person's words."""

from __future__ import annotations

import os
from pathlib import Path

from raymed.data import series
from raymed.data.counts import left_out, table
from raymed.data.geometry import fitted, spread
from raymed.data.prepare import PrepareResult, expected_split, require_apart
from raymed.data.quarantine import Quarantine
from raymed.data.reading import seconds_per_slice
from raymed.data.settings import PrepareSettings
from raymed.data.survey import survey
from raymed.job.job import Outcome
from raymed.language import say
from raymed.storage.folder import Folder


def plan(source: Path, out: str, settings: PrepareSettings) -> Outcome:
    """What would be done."""
    found = survey(source, settings, settings.labels)
    require_apart(found, Folder.at(out))
    patients = expected_split(found, settings)
    lost = Quarantine(found, {}, settings.max_quarantine).left_out({study.patient for study in found.studies})
    cpus = os.cpu_count() or 1
    seconds = seconds_per_slice(found, settings.image) * found.slices / cpus
    damaged = sum(not refusal.expected for refusal in found.listing.refusals)
    megabytes = found.slices * settings.image.size**2 / 1e6
    lines = [
        *found.listing.notes,
        *fitted(found.listing, settings.image),
        *table(found.labels.told(patients)),
        say(
            "{format}: {slices} slices; left out by label: {ignored}; refused already: {damaged}; passed over: {others}",
            format=found.listing.format,
            slices=found.slices,
            ignored=found.ignored or say("none"),
            damaged=damaged,
            others=len(found.listing.refusals) - damaged,
        ),
        *(left_out(lost) if lost else []),
        say(
            "about {seconds:.0f} s on {cpus} CPUs, {megabytes:.0f} MB of grey pixels before compression",
            seconds=seconds,
            cpus=cpus,
            megabytes=megabytes,
        ),
        say("dry run: nothing was written to {out}", out=out),
    ]
    data = {"format": found.listing.format, "patients": patients, "slices": found.slices, "ignored": found.ignored}
    return Outcome("\n".join(lines), data | {"refused": damaged, "left_out": lost, "seconds": round(seconds)})


def summary(result: PrepareResult) -> Outcome:
    """What was done."""
    manifest, labels = result.prepared.manifest, result.prepared.labels
    lines = [
        *table(labels.told(manifest.patients), labels.told(manifest.slices)),
        say(
            "studies: {new} read, {kept} unchanged; slices left out by label: {ignored}",
            new=result.new,
            kept=result.kept,
            ignored=manifest.ignored or say("none"),
        ),
        say(
            "quarantined: {quarantined} slices; passed over: {passed_over} (quarantine.jsonl)",
            quarantined=manifest.quarantined,
            passed_over=manifest.passed_over,
        ),
        *left_out(manifest.left_out),
        say("patients that share near-duplicate pictures: {groups}", groups=manifest.near_duplicates or say("none")),
        *spread(result.prepared),
        *series.report(result.prepared),
        str(result.guard),
        say("prepared data: {folder} (digest {digest})", folder=result.prepared.folder.uri, digest=manifest.digest),
    ]
    data = {"out": result.prepared.folder.uri, "new": result.new, "kept": result.kept}
    known = ("digest", "patients", "slices", "quarantined", "passed_over", "left_out", "ignored", "near_duplicates")
    return Outcome("\n".join(lines), data | {name: getattr(manifest, name) for name in known})
