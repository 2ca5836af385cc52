"""Tables of judged patients and slices: a line each, with its label, the decision and the probability of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raymed.evaluation.patients import Patients


def decision_table(
    which: Mapping[str, Any], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """A line per patient or slice: which one, its label, the decision, and the probability of each class.

    Args:
        which: columns that say which one it is.
        labels: class indices, [rows]; all are known.
        probabilities: [rows, classes], in the order of `names`.
    """
    said = {
        "label": [names[label] for label in labels],
        "decision": [names[best] for best in probabilities.argmax(axis=1)],
    }
    shares = {f"p_{name}": column for name, column in zip(names, probabilities.T, strict=True)}
    return pd.DataFrame({**which, **said, **shares})


def patient_table(patients: Patients, names: Sequence[str]) -> pd.DataFrame:
    """A line per patient: who, how many slices, their source, and the decision."""
    which = {f"{patients.unit}_id": patients.ids, "slices": patients.slices, "source": patients.sources}
    return decision_table(which, patients.labels, patients.probabilities, names)


def slice_table(
    columns: Mapping[str, np.ndarray], probabilities: np.ndarray, names: Sequence[str], unit: str
) -> pd.DataFrame:
    """A line per slice: whose, of which study and position, and the decision.

    Args:
        columns: of the index, [rows]: patient, study, position, id and label.
        probabilities: [rows, classes].
        unit: see `Patients`.
    """
    which = {f"{unit}_id": columns["patient"], **{name: columns[name] for name in ("study", "position", "id")}}
    return decision_table(which, columns["label"], probabilities, names)
