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

from raymed.data.prepare import PrepareResult, PrepareSettings, prepare, seconds_per_slice
from raymed.data.survey import survey
from raymed.job import JobOptions, Outcome, run


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
    return plan(options) if options.dry_run else summary(prepare(Path(options.source), options.out, options))


def plan(options: PrepareOptions) -> Outcome:
    found = survey(Path(options.source), options, options.labels)
    cpus = os.cpu_count() or 1
    seconds = seconds_per_slice(found, options.image) * found.slices / cpus
    data = {
        "format": found.listing.format,
        "patients": found.patients,
        "slices": found.slices,
        "ignored": found.ignored,
        "refused": len(found.listing.refusals),
        "seconds": round(seconds),
        "megabytes": round(found.slices * options.image.size**2 / 1e6),
    }
    lines = [
        *found.listing.notes,
        f"{found.listing.format}: {found.slices} slices of {sum(found.patients.values())} patients: {found.patients}",
        f"left out by label: {found.ignored or 'none'}; refused already: {len(found.listing.refusals)} files",
        f"about {seconds:.0f} s on {cpus} CPUs and at most {data['megabytes']} MB (grey) in {options.out}",
        "dry run: nothing was written",
    ]
    return Outcome("\n".join(lines), data)


def summary(result: PrepareResult) -> Outcome:
    manifest = result.prepared.manifest
    splits = sorted({split for counts in manifest.patients.values() for split in counts}, key=str)
    lines = [f"{'patients (slices)':<18}" + "".join(f"{split:>16}" for split in splits)]
    for name, patients in manifest.patients.items():
        cells = [f"{patients.get(split, 0)} ({manifest.slices[name].get(split, 0)})" for split in splits]
        lines.append(f"{name:<18}" + "".join(f"{cell:>16}" for cell in cells))
    lines += [
        f"studies: {result.new} read, {result.kept} unchanged; slices left out by label: {manifest.ignored or 'none'}",
        f"quarantined: {manifest.quarantined} slices (quarantine.jsonl)",
        f"near-duplicates: {len(manifest.near_duplicates)} groups of patients {manifest.near_duplicates[:10] or ''}",
        str(result.guard),
        f"prepared data: {result.prepared.folder.uri} (digest {manifest.digest})",
    ]
    data = {
        "out": result.prepared.folder.uri,
        "digest": manifest.digest,
        "patients": manifest.patients,
        "slices": manifest.slices,
        "new": result.new,
        "kept": result.kept,
        "quarantined": manifest.quarantined,
        "ignored": manifest.ignored,
        "near_duplicates": manifest.near_duplicates,
    }
    return Outcome("\n".join(lines), data)


if __name__ == "__main__":
    run(PrepareOptions, main)
