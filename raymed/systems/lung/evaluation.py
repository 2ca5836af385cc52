"""A lung classifier judged on prepared patients, and on their single slices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raymed.data.labels import LabelTable
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.metrics import Evaluation, evaluate
from raymed.evaluation.patients import Aggregation, Patients
from raymed.evaluation.single_slices import SingleSlices, probabilities_of
from raymed.evaluation.summary import crosswise, lines
from raymed.evaluation.tables import patient_table, slice_table
from raymed.language import say
from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model says of patients and of their slices, and how good that is.

    Attributes:
        labels: the classes.
        patients: each patient's decision.
        evaluation: figures of the patients, which count.
        columns: of the slices' index, [slices].
        probabilities: of the slices, each by itself, [slices, classes].
    """

    labels: LabelTable
    patients: Patients
    evaluation: Evaluation
    columns: dict[str, np.ndarray]
    probabilities: np.ndarray

    @classmethod
    def of(
        cls,
        logits: np.ndarray,
        columns: dict[str, np.ndarray],
        labels: LabelTable,
        temperature: Temperature,
        method: Aggregation,
        bootstrap: int,
        seed: int,
        unit: str,
    ) -> Judged:
        """Args: logits: [slices, classes]; the others as for `to_patients` and `evaluate`.

        Raises:
            UserError: a patient has no label.
        """
        patients = temperature.pool(logits, columns, method, unit)
        evaluation = evaluate(patients, labels.names, bootstrap, seed)
        return cls(labels, patients, evaluation, columns, probabilities_of(logits, temperature))

    def lines(self) -> list[str]:
        """Figures for a terminal."""
        names, single = self.labels.called, self.single
        figures = ", ".join(f"{say(name)} {value:.3f}" for name, value in single.figures.items())
        recall = ", ".join(
            f"{name} {single.recall[own]:.3f}"
            for name, own in zip(names, self.labels.names, strict=True)
            if own in single.recall
        )
        return [
            *lines(self.evaluation, names),
            "",
            say("single slices ({count}): {figures}", count=single.count, figures=figures),
            say("recall of each class's slices: {recall}", recall=recall),
            say("{units} by class (row) and decision (column)", units=say("slices")),
            *crosswise(names, single.confusion),
        ]

    @property
    def single(self) -> SingleSlices:
        """Figures of single slices."""
        return SingleSlices.of(self.columns["label"], self.probabilities, self.labels.names)

    def write(self, folder: Folder) -> str:
        """Every patient and slice, with label, decision and probabilities, as CSV; returns where."""
        names = self.labels.names
        unit = self.patients.unit
        folder.write(f"{unit}s.csv", to_csv(patient_table(self.patients, names)))
        folder.write("slices.csv", to_csv(slice_table(self.columns, self.probabilities, names, unit)))
        return say(
            "every {unit} and slice: {folder}/{file} and slices.csv", unit=say(unit), folder=folder.uri, file=f"{unit}s.csv"
        )

    def data(self) -> dict[str, Any]:
        """For --json."""
        single = self.single
        of_classes = {"recall": single.recall, "confusion": single.confusion}
        return {"evaluation": asdict(self.evaluation), "slices": single.figures | of_classes}


def looked_at(model: str, tracking: str, ids: list[str], unit: str) -> list[str]:
    """A line that says how often these test patients have judged a model, this time included; none for the first, or where
    there are none."""
    from mlflow.exceptions import MlflowException

    from raymed.registry.address import UNKNOWN, run_of
    from raymed.registry.register import count_look
    from raymed.tracking.tracker import Tracker

    if not ids:
        return []
    try:
        tracker = Tracker.open(tracking)
        run = run_of(model, tracker)
        looks = 0 if run == UNKNOWN else count_look(tracker, run, ids, registers=False)
    except (UserError, MlflowException, OSError) as error:  # what was judged is shown all the same
        return [f"not noted that these test {unit}s judged a model: {error}"]
    if not looks:
        return [f"not noted that these test {unit}s judged a model: MLflow has no run of it"]
    if looks == 1:
        return []
    return [f"these test {unit}s have judged {looks} models so far: figures of one that is picked by them flatter it"]
