"""What the folds of a CLIP configuration, or its only run, say of the patients that they were validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raymed.data.prepared import Prepared
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.figures import confusion
from raymed.evaluation.metrics import Evaluation, evaluate, judge_patients
from raymed.evaluation.patients import Patients
from raymed.recipes.recipe import Predictions
from raymed.storage.folder import Folder
from raymed.tracking.tracker import Tracker
from raymed.training.predictions import last_predictions, read_predictions
from raymed.training.validation import JUDGED_BY

CONFUSION = "confusion_matrix.png"
PER_PATIENT = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc")  # of each fold's best epoch


@dataclass(frozen=True)
class Judged:
    """What the checkpoints of a configuration say of the patients that they were validated on.

    Attributes:
        together: all these patients, by the best checkpoints.
        folds: figures of each best checkpoint's, as `PER_PATIENT` names them; what cannot be formed everywhere is left out.
        last: the same of each run's last epoch; empty where one of them has none that can be read.
        patients: what is said of each.
        judged_by: which of the checkpoints says it, by patient, from 0.
        last_patients: what the last epochs say of each; None where `last` is empty.
    """

    together: Evaluation
    folds: dict[str, list[float]]
    last: dict[str, list[float]]
    patients: Patients
    judged_by: dict[str, int]
    last_patients: Patients | None = None

    @classmethod
    def of(cls, prepared: Prepared, checkpoints: Sequence[str], seed: int, runs: Sequence[Folder] = ()) -> Judged:
        """
        Args:
            checkpoints: address of the best checkpoint of each fold, or of the only run.
            runs: the folders of these runs, for their last epochs.
        """
        best = [read_predictions(Folder.at(checkpoint)) for checkpoint in checkpoints]
        last = [predictions for run in runs if (predictions := last_predictions(run)) is not None]
        patients = _pooled(prepared, best)
        evaluation = evaluate(patients, prepared.labels.names, seed=seed)
        judged_by = {
            str(patient): number
            for number, each in enumerate(best)
            for patient in prepared.columns(np.asarray(each["row"]), ["patient"])["patient"]
        }
        if len(last) < len(best):
            return cls(evaluation, _by_fold(prepared, best), {}, patients, judged_by)
        by_last = _by_fold(prepared, last)
        return cls(evaluation, _by_fold(prepared, best), by_last, patients, judged_by, _pooled(prepared, last))

    def describe(self) -> dict[str, Any]:
        """Figures with 95 % intervals, of each class too, and who was taken for whom, as plain values."""
        return {
            "patients": {name: asdict(each) for name, each in self.together.metrics.items()},
            "classes": [asdict(each) for each in self.together.classes],
            "confusion": self.together.confusion,
        }

    def record(self, tracker: Tracker, run: str, name: str, folder: Path) -> None:
        """Write the figures into MLflow, and the confusion matrix into the output folder too.

        Args:
            name: of the configuration, put before the names of what is written.
        """
        before = f"{name}/" if name else ""
        tracker.metrics(run, {f"{before}patients_{each}": value for each, value in self.together.flat().items()})
        names = [each.name for each in self.together.classes]
        figure = confusion(self.together.confusion, names, names)
        figure.savefig(folder / CONFUSION)
        tracker.figure(run, figure, before + CONFUSION)


def _pooled(prepared: Prepared, folds: Sequence[Predictions]) -> Patients:
    """The patients of all folds together."""
    logits = np.concatenate([np.asarray(each["logits"]) for each in folds])
    columns = prepared.columns(np.concatenate([np.asarray(each["row"]) for each in folds]), JUDGED_BY)
    return Temperature().pool(logits, columns, unit=prepared.manifest.unit)


def _by_fold(prepared: Prepared, folds: Sequence[Predictions]) -> dict[str, list[float]]:
    """Figures of what was said of each fold, as `PER_PATIENT` names them."""
    figures = [
        judge_patients(
            np.asarray(each["logits"]), prepared.columns(np.asarray(each["row"]), JUDGED_BY), prepared.labels.names
        )
        for each in folds
    ]
    return {name: [each[name] for each in figures] for name in PER_PATIENT if all(name in each for each in figures)}
