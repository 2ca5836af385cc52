"""Predict patients from their pictures: a CSV with one line per patient.

    python jobs/predict_lung.py --model models:/raymed-lung@champion --input PATIENTS --out predictions.csv
    python jobs/predict_lung.py --model models:/raymed-lung@champion --input list.csv --out predictions.csv
    python jobs/predict_lung.py --model models:/raymed-lung@champion --input SCANS --source.format dicom --out OUT.csv

The input is a folder of patients, a picture, a CSV with image and patient_id, DICOM series, or NIfTI volumes. A patient
without a usable slice gets a line without a decision, and the note says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from raymed.data.sources import SourceSettings, list_source
from raymed.errors import UserError
from raymed.evaluation.predict import note, predict_studies, table
from raymed.job import JobOptions, Outcome, run
from raymed.recipes import open_model
from raymed.registry import resolve_model
from raymed.storage import Folder
from raymed.tracking import Tracker


@dataclass(frozen=True, kw_only=True)
class Predict(JobOptions):
    """Options of predicting.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or the folder of a registered model.
        input: A folder, picture, CSV, DICOM series or NIfTI volume.
        out: The CSV to write; columns patient_id, decision, p_<class>, slices, model, note.
        source: How the input is read; labels in it are not looked at.
        micro_batch: Slices that are predicted at once.
        workers: Ray actors that predict; 1 works in this process.
    """

    model: str
    input: str
    out: str
    source: SourceSettings = field(default_factory=SourceSettings)
    micro_batch: int = 32
    workers: int = 1


def main(options: Predict) -> Outcome:
    resolved = resolve_model(options.model, Tracker.open(options.tracking, "raymed-lung"))
    if resolved.inference is None:
        raise UserError(
            f"{options.model} is a bare checkpoint: how its pictures were windowed and resized, and its temperature, are "
            "not in it. Register it with jobs/promote.py RUN_ID and predict with the registered model."
        )
    listing = list_source(Path(options.input), replace(options.source, labelled=False))
    lost = [note(refusal) for refusal in listing.refusals if refusal.patient is None]
    found = (
        f"{listing.format}: {sum(len(study.slices) for study in listing.studies)} slices in {len(listing.studies)} studies"
    )
    warnings = [*listing.notes, *(f"not used: {line}" for line in lost)]
    if options.dry_run:
        return Outcome("\n".join([*warnings, found, "dry run: nothing was written"]), {"found": found, "warnings": warnings})
    model = open_model(resolved.network)
    predictions = predict_studies(model, listing, resolved.inference, options.micro_batch, options.workers)
    lines = pd.DataFrame(table(predictions, resolved.inference))
    out = Path(options.out).expanduser().resolve()
    Folder.at(out.parent).write(out.name, lines.to_csv(index=False).encode())
    undecided = int(lines["decision"].isna().sum())
    decided = lines["decision"].value_counts().to_dict()
    text = [*warnings, found, f"decided: {decided}; without a usable slice: {undecided} patients", f"predictions: {out}"]
    data = {"out": str(out), "patients": len(lines), "decided": decided, "undecided": undecided, "warnings": warnings}
    return Outcome("\n".join(text), data)


if __name__ == "__main__":
    run(Predict, main)
