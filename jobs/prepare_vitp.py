"""Prepare samples for pretraining: check lines, cut pictures into tiles, split by patient, write what training reads.

    python jobs/prepare_vitp.py --source meta.json --out CORPUS --tokenizer MODEL     # data sets of conversations
    python jobs/prepare_vitp.py --source dialogues.jsonl --out CORPUS --tokenizer MODEL --tiles.most 12
    python jobs/prepare_vitp.py --source captions.csv --out CORPUS --tokenizer MODEL  # columns image, text, patient_id

Run it again after adding, changing or removing lines: only what changed is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymed.data.settings import CorpusSettings
from raymed.data.sources.names import SAMPLE_NAMES
from raymed.job.job import JobOptions, Outcome, run
from raymed.storage.folder import Folder

if TYPE_CHECKING:
    from raymed.data.prepare import PrepareResult


@dataclass(frozen=True, kw_only=True)
class PrepareVitpOptions(JobOptions, CorpusSettings):
    """Options of preparing samples for pretraining.

    Attributes:
        source: A meta JSON, a JSONL file of conversations, or a CSV of pictures and texts.
        out: Folder or URI of the prepared data.
    """

    source: str
    out: str


def main(options: PrepareVitpOptions) -> Outcome:
    from raymed.data.corpus import prepare_corpus

    return plan(options) if options.dry_run else summary(prepare_corpus(Path(options.source), options.out, options))


def plan(options: PrepareVitpOptions) -> Outcome:
    """What would be done."""
    from raymed.data.corpus import survey_corpus
    from raymed.data.counts import table
    from raymed.data.prepare import expected_split, require_apart
    from raymed.data.sources.listing import by_reason

    found, used = survey_corpus(Path(options.source), options)
    require_apart(found, Folder.at(options.out))
    patients = expected_split(found, options)["unlabelled"]
    lines = [
        *found.listing.notes,
        *table({"all": patients}),
        *_uses(used),
        f"{found.slices} samples in order; refused already: {len(found.listing.refusals)}",
        *(f"  {line}" for line in by_reason((refusal.where, refusal.reason) for refusal in found.listing.refusals)),
        f"dry run: nothing was written to {options.out}",
    ]
    data = {"samples": found.slices, "patients": patients, "refused": len(found.listing.refusals), "datasets": used}
    return Outcome("\n".join(lines), data)


def summary(result: PrepareResult) -> Outcome:
    """What was done."""
    from raymed.data import corpus_yield
    from raymed.data.counts import closing, facts, table

    prepared, manifest = result.prepared, result.prepared.manifest
    tokens = int(prepared.columns(prepared.rows("all"), ["cost"])["cost"].sum())
    lines = [
        *table({"all": manifest.patients["unlabelled"]}),
        *table(manifest.sources, head="samples"),
        *_uses(manifest.settings["datasets"]),
        f"studies: {result.new} read, {result.kept} unchanged; tokens: {tokens} in all",
        *corpus_yield.lines(prepared),
        f"quarantined: {manifest.quarantined} samples (quarantine.jsonl)",
        *closing(result),
    ]
    return Outcome("\n".join(lines), facts(result) | {"tokens": tokens})


def _uses(used: dict[str, dict[str, object]]) -> list[str]:
    return [
        f"{name}: {use['lines']} lines, repeat_time {use['repeat_time']}, at most {use['max_dynamic_patch']} tiles"
        f"{', JPEG augmentation' if use['data_augment'] else ''}"
        for name, use in used.items()
    ]


if __name__ == "__main__":
    run(PrepareVitpOptions, main, aliases=SAMPLE_NAMES)
