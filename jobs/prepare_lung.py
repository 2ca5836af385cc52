"""Prepare lung images: check, window, resize and split them, and write what training reads.

    python jobs/prepare_lung.py --source PATIENTS --out PREPARED                      # <class>/<patient>/*.png
    python jobs/prepare_lung.py --source labels.csv --out PREPARED --image.size 224   # columns image, patient_id, label
    python jobs/prepare_lung.py --source SCANS --out PREPARED --labels TABLE.yaml --split.weights 0/0/100

Run it again after adding, changing or removing patients: only what changed is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymed.data.settings import PrepareSettings
from raymed.data.sources.names import SOURCE_NAMES
from raymed.data.survey import survey
from raymed.job.job import JobOptions, Outcome, run

if TYPE_CHECKING:
    from raymed.data.prepare import PrepareResult


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(JobOptions, PrepareSettings):
    """Options of preparing lung images.

    Attributes:
        source: A folder, CSV, conversation file, DICOM series or NIfTI volume.
        out: Folder or URI of the prepared data.
    """

    source: str
    out: str


def main(options: PrepareOptions) -> Outcome:
    from raymed.data.prepare import prepare

    return plan(options) if options.dry_run else summary(prepare(Path(options.source), options.out, options))


def plan(options: PrepareOptions) -> Outcome:
    """What would be done."""
    from raymed.data.counts import left_out, table
    from raymed.data.geometry import squashed
    from raymed.data.prepare import expected_split
    from raymed.data.quarantine import Quarantine
    from raymed.data.reading import seconds_per_slice

    found = survey(Path(options.source), options, options.labels)
    patients = expected_split(found, options)
    lost = Quarantine(found, {}, options.max_quarantine).left_out({study.patient for study in found.studies})
    cpus = os.cpu_count() or 1
    seconds = seconds_per_slice(found, options.image) * found.slices / cpus
    damaged = sum(not refusal.expected for refusal in found.listing.refusals)
    megabytes = found.slices * options.image.size**2 / 1e6
    lines = [
        *found.listing.notes,
        *([note] if (note := squashed(found.listing, options.image)) else []),
        *table(patients),
        f"{found.listing.format}: {found.slices} slices; left out by label: {found.ignored or 'none'}; "
        f"refused already: {damaged}; passed over: {len(found.listing.refusals) - damaged}",
        *(left_out(lost) if lost else []),
        f"about {seconds:.0f} s on {cpus} CPUs, {megabytes:.0f} MB of grey pixels before compression",
        f"dry run: nothing was written to {options.out}",
    ]
    data = {"format": found.listing.format, "patients": patients, "slices": found.slices, "ignored": found.ignored}
    return Outcome("\n".join(lines), data | {"refused": damaged, "left_out": lost, "seconds": round(seconds)})


def summary(result: PrepareResult) -> Outcome:
    """What was done."""
    from raymed.data.counts import left_out, table
    from raymed.data.geometry import spread

    manifest = result.prepared.manifest
    lines = [
        *table(manifest.patients, manifest.slices),
        f"studies: {result.new} read, {result.kept} unchanged; slices left out by label: {manifest.ignored or 'none'}",
        f"quarantined: {manifest.quarantined} slices; passed over: {manifest.passed_over} (quarantine.jsonl)",
        *left_out(manifest.left_out),
        f"patients that share near-duplicate pictures: {manifest.near_duplicates or 'none'}",
        *spread(result.prepared),
        str(result.guard),
        f"prepared data: {result.prepared.folder.uri} (digest {manifest.digest})",
    ]
    data = {"out": result.prepared.folder.uri, "new": result.new, "kept": result.kept}
    known = ("digest", "patients", "slices", "quarantined", "passed_over", "left_out", "ignored", "near_duplicates")
    return Outcome("\n".join(lines), data | {name: getattr(manifest, name) for name in known})


if __name__ == "__main__":
    run(PrepareOptions, main, aliases=SOURCE_NAMES)
