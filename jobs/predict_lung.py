"""Predict patients from their pictures: a CSV with one line per patient.

    python jobs/predict_lung.py --model models:/raymed-lung@champion --input PATIENTS --out predictions.csv
    python jobs/predict_lung.py --model models:/raymed-lung@champion --input list.csv --out predictions.csv
    python jobs/predict_lung.py --model models:/raymed-lung@champion --input SCANS --source.format dicom --out OUT.csv
    python jobs/predict_lung.py --model work_dirs/med_cls/checkpoint-2000 --labels lung --input PATIENTS --out OUT.csv

The input is a folder of patients, a picture, a CSV with image and patient_id, DICOM series, or NIfTI volumes. A patient
without a usable slice gets a line without a decision, and the note says why.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from raymed.errors import UserError
from raymed.job.job import Outcome, run
from raymed.registry.prediction import PredictOptions, predict
from raymed.storage.folder import require_other

log = logging.getLogger("raymed")


@dataclass(frozen=True, kw_only=True)
class PredictLung(PredictOptions):
    """Options of predicting lungs.

    Attributes:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, the folder of a registered model, or an InternVL
            folder that was trained elsewhere.
        labels: What a model that was trained elsewhere is asked to choose from: a label table, or the name of one.
    """

    model: str
    labels: str = "lung"


def main(options: PredictLung) -> Outcome:
    from raymed.data.labels import LabelTable
    from raymed.registry.address import run_of
    from raymed.systems.lung.elsewhere import ElsewhereTrained, open_lung
    from raymed.tracking.tracker import Tracker

    require_other(options.out, options.labels)
    labels = LabelTable.open(options.labels)
    model = open_lung(options.model, options.tracking, labels)
    if isinstance(model, ElsewhereTrained):
        log.warning("%s; %s", model.asked, model.treated)
        return predict(options, model.predicting(labels), model.open)
    if model.inference is None:
        run_id = run_of(options.model, Tracker.open(options.tracking))
        raise UserError(
            f"{options.model} is a bare checkpoint: how its pictures were windowed and resized, and its "
            f"temperature, are not in it. Register its run with jobs/promote.py {run_id} and predict with the "
            "registered model."
        )
    return predict(options, model.inference, model.open)


if __name__ == "__main__":
    run(PredictLung, main)
