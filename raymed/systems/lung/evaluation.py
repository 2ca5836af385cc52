"""A lung classifier judged on prepared patients, and on their single slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raymed.data.labels import LabelTable
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.metrics import Evaluation, evaluate
from raymed.evaluation.patients import Aggregation, Patients, softmax
from raymed.evaluation.scores import Scores, overall
from raymed.evaluation.summary import crosswise, lines
from raymed.evaluation.tables import patient_table, slice_table
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
        probabilities = temperature.scale(softmax(logits, temperature.logits), np.ones(len(logits)))
        return cls(labels, patients, evaluate(patients, labels.names, bootstrap, seed), columns, probabilities)

    def lines(self, language: str) -> list[str]:
        """Figures for a terminal, classes as readers of a language are shown them (empty: by their names)."""
        names, single = self.labels.called(language), self.of_slices()
        figures = ", ".join(f"{name} {value:.3f}" for name, value in single["figures"].items())
        recall = ", ".join(
            f"{name} {single['recall'][own]:.3f}"
            for name, own in zip(names, self.labels.names, strict=True)
            if own in single["recall"]
        )
        return [
            *lines(self.evaluation, names),
            "",
            f"single slices ({len(self.probabilities)}): {figures}",
            f"recall of each class's slices: {recall}",
            "slices by class (row) and decision (column)",
            *crosswise(names, single["confusion"]),
        ]

    def of_slices(self) -> dict[str, Any]:
        """Figures of single slices: overall, `recall` of the classes that there are, and `confusion` (class, decision)."""
        labels = self.columns["label"]
        scores, names = Scores.of(labels, self.probabilities), self.labels.names
        known: Sequence[int] = np.flatnonzero(np.isfinite(scores.recall)).tolist()
        return {
            "figures": overall(labels, self.probabilities),
            "recall": {names[row]: float(scores.recall[row]) for row in known},
            "confusion": scores.confusion.tolist(),
        }

    def write(self, folder: Folder) -> str:
        """Every patient and slice, with label, decision and probabilities, as CSV; returns where."""
        names = self.labels.names
        unit = self.patients.unit
        folder.write(f"{unit}s.csv", to_csv(patient_table(self.patients, names)))
        folder.write("slices.csv", to_csv(slice_table(self.columns, self.probabilities, names, unit)))
        return f"every {unit} and slice: {folder.uri}/{unit}s.csv and slices.csv"

    def data(self) -> dict[str, Any]:
        """For --json."""
        single = self.of_slices()
        of_classes = {"recall": single["recall"], "confusion": single["confusion"]}
        return {"evaluation": asdict(self.evaluation), "slices": single["figures"] | of_classes}
