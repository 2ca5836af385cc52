"""Prepare lung images: check, window, resize and split them, and write what training reads.

    python jobs/prepare_lung.py --source PATIENTS --out PREPARED                      # <class>/<patient>/*.png
    python jobs/prepare_lung.py --source labels.csv --out PREPARED --image.size 224   # columns image, patient_id, label
    python jobs/prepare_lung.py --source SCANS --out PREPARED --labels TABLE.yaml --split.weights 0/0/100

Run it again after adding, changing or removing patients: only what changed is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.data.settings import PrepareSettings
from raymed.data.sources.names import SOURCE_NAMES
from raymed.job.job import JobOptions, Outcome, run


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
    from raymed.systems.lung.preparation import plan, summary

    source = Path(options.source)
    return plan(source, options.out, options) if options.dry_run else summary(prepare(source, options.out, options))


if __name__ == "__main__":
    run(PrepareOptions, main, aliases=SOURCE_NAMES)
