"""Figures of decisions and probabilities, without intervals. The tests hold each against scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from raymed.evaluation.reliability import calibration_error

SMALLEST_PROBABILITY = 1e-7  # a patient judged wrong with certainty costs 16.1 nats, not infinity
LARGEST_LOSS = float(-np.log(SMALLEST_PROBABILITY))


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of the rows that there are; NaN of a class where one cannot be formed.

    Attributes:
        confusion: rows by class and decision, int [classes, classes].
        recall: [classes]; likewise f1, and auc (one against rest).
    """

    confusion: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    auc: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> Scores:
        """Args: labels: class indices, [rows]; probabilities: [rows, classes]."""
        count = probabilities.shape[1]
        cells = np.bincount(labels * count + probabilities.argmax(axis=1), minlength=count * count)
        confusion = cells.reshape(count, count)
        hits, having, given = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall, f1 = hits / having, np.where(having > 0, 2 * hits / (having + given), np.nan)
        return cls(confusion, recall, f1, np.array([auc(labels == c, probabilities[:, c]) for c in range(count)]))


def losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each row, [rows]; a probability counts as at least 1e-7."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    nats: np.ndarray = -np.log(own.clip(SMALLEST_PROBABILITY, 1.0))
    return nats


def auc(positive: np.ndarray, score: np.ndarray) -> float:
    """How often a positive row scores above a negative one; equals count half. NaN where all or none are positive.

    By ranks (Mann and Whitney 1947): scikit-learn's takes thirty times as long, and resampling asks thousands of times.
    """
    above = int(positive.sum())
    below = len(positive) - above
    if not above or not below:
        return np.nan
    return float((rankdata(score)[positive].sum() - above * (above + 1) / 2) / (above * below))


def overall(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The figures over all patients, or over all slices: ``loss``, ``accuracy``, ``ece``, ``balanced_accuracy``,
    ``macro_f1``, ``macro_auc``; macro figures over the classes that have one, and absent where none has.

    Args:
        labels: class indices, int [rows].
        probabilities: [rows, classes].
    """
    scores = Scores.of(labels, probabilities)
    right = probabilities.argmax(axis=1) == labels
    named = {
        "loss": losses(labels, probabilities).mean(),
        "accuracy": right.mean(),
        "ece": calibration_error(probabilities.max(axis=1), right),
    }
    macro = {"balanced_accuracy": scores.recall, "macro_f1": scores.f1, "macro_auc": scores.auc}
    named |= {name: np.nanmean(values) for name, values in macro.items() if np.isfinite(values).any()}
    return {name: float(value) for name, value in named.items()}
