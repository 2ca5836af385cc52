"""Predict patients from their pictures: a CSV with one line per patient.

    python jobs/predict_lung.py --model models:/raymed-lung@champion --input PATIENTS --out predictions.csv
    python jobs/predict_lung.py --model models:/raymed-lung@champion --input list.csv --out predictions.csv
    python jobs/predict_lung.py --model models:/raymed-lung@champion --input SCANS --source.format dicom --out OUT.csv

The input is a folder of patients, a picture, a CSV with image and patient_id, DICOM series, or NIfTI volumes. A patient
without a usable slice gets a line without a decision, and the note says why.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.errors import UserError
from raymed.job.job import Outcome, run
from raymed.registry.prediction import PredictOptions, predict


@dataclass(frozen=True, kw_only=True)
class PredictLung(PredictOptions):
    """Options of predicting lungs.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or the folder of a registered model.
    """

    model: str


def main(options: PredictLung) -> Outcome:
    from raymed.recipes.exported import open_model
    from raymed.registry.address import resolve_model
    from raymed.tracking.tracker import Tracker

    resolved = resolve_model(options.model, Tracker.open(options.tracking))
    if resolved.inference is None:
        raise UserError(
            f"{options.model} is a bare checkpoint: how its pictures were windowed and resized, and its temperature, are "
            "not in it. Register it with jobs/promote.py RUN_ID and predict with the registered model."
        )
    return predict(options, resolved.inference, lambda: open_model(resolved.network))


if __name__ == "__main__":
    run(PredictLung, main)
