"""From slices to patients: the decision that matters is made once per patient, on all of that patient's slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special

from raymed.errors import RunError, UserError

Aggregation = Literal["mean", "vote", "log-mean"]
"""How the slices of a patient decide; see `to_patients`."""

UNKNOWN = -1  # the label of a patient that has none
_SMALLEST = 1e-7  # probability of a slice under "log-mean": a certain slice is not the only one that counts
_TIE = 1e-6  # weight of the mean probability under "vote": far less than one vote among any number of slices


@dataclass(frozen=True, eq=False)
class Patients:
    """What a model says about patients, one row each, sorted by id.

    Attributes:
        ids: patient ids, object [patients].
        labels: class index, int64 [patients]; -1 where unknown.
        probabilities: class probabilities, float64 [patients, classes].
        slices: number of slices behind each row, int64 [patients].
        sources: where the patient's slices came from, object [patients]; several sources are joined by " + ".
        voted: the probabilities are shares of the slices' votes: they decide, and say nothing about how sure that is.
        unit: what a row is called: patient, or image where nobody knows whose the pictures are.
    """

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    slices: np.ndarray
    sources: np.ndarray
    voted: bool = False
    unit: str = "patient"

    @property
    def decisions(self) -> np.ndarray:
        """The most probable class of each patient, int64 [patients]; the first one of equals."""
        return self.probabilities.argmax(axis=1)

    def part(self, rows: np.ndarray) -> Patients:
        """Some of them: row numbers, or bool [patients]."""
        ids, labels, sources = self.ids[rows], self.labels[rows], self.sources[rows]
        return Patients(ids, labels, self.probabilities[rows], self.slices[rows], sources, self.voted, self.unit)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Class probabilities, float64 [rows, classes], of logits divided by a temperature (Guo et al. 2017, eq. 9)."""
    probabilities: np.ndarray = scipy.special.softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)
    return probabilities


def to_patients(
    probabilities: np.ndarray,
    patients: np.ndarray,
    labels: np.ndarray,
    sources: np.ndarray,
    method: Aggregation = "mean",
    unit: str = "patient",
) -> Patients:
    """One probability vector per patient from those of the slices.

    Args:
        probabilities: class probabilities of the slices, [rows, classes].
        patients: patient id of each slice, [rows].
        labels: class index of each slice, [rows]; -1 where unknown.
        sources: source of each slice, [rows].
        method: ``mean`` averages the probability vectors. ``log-mean`` averages their logarithms, so that one slice that
            rules a class out weighs more; a probability counts as at least 1e-7. ``vote`` gives each class its share of
            the slices that decide for it; equal shares are settled by the mean probability.
        unit: see `Patients`.

    Raises:
        RunError: a probability is NaN or infinite.
        UserError: a patient has two labels.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(bad):
        raise RunError(
            f"The model's output is not a number for {len(bad)} of {len(probabilities)} slices "
            f"(the first belongs to patient {patients[bad[0]]}): training has diverged; lower the learning rate."
        )
    ids, first, owner, slices = np.unique(
        np.asarray(patients, dtype=object), return_index=True, return_inverse=True, return_counts=True
    )
    patient_labels = np.asarray(labels, dtype=np.int64)[first]
    two = np.unique(owner[labels != patient_labels[owner]])
    if len(two):
        named = ", ".join(str(ids[i]) for i in two[:10])
        raise UserError(f"{len(two)} patients have two labels: {named}. Correct the labels and prepare the data again.")
    means = _means(probabilities, owner, slices)
    if method == "log-mean":
        means = softmax(_means(np.log(probabilities.clip(_SMALLEST)), owner, slices))
    if method == "vote":
        votes = _means(np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)], owner, slices)
        means = (1 - _TIE) * votes + _TIE * means
    joined = _join(np.asarray(sources, dtype=object), owner, len(ids))
    return Patients(ids, patient_labels, means, slices.astype(np.int64), joined, method == "vote", unit)


def _means(values: np.ndarray, owner: np.ndarray, slices: np.ndarray) -> np.ndarray:
    sums = [np.bincount(owner, weights=column, minlength=len(slices)) for column in values.T]
    return np.stack(sums, axis=1) / slices[:, None]


def _join(sources: np.ndarray, owner: np.ndarray, patients: int) -> np.ndarray:
    found: list[set[str]] = [set() for _ in range(patients)]
    for patient, source in zip(owner, sources, strict=True):
        found[patient].add(str(source))
    joined = np.empty(patients, dtype=object)
    joined[:] = [" + ".join(sorted(names)) for names in found]
    return joined
