"""Figures as weighted sums over rows, and the bootstrap weights to form them with.

One code path gives a figure's value (all weights one) and its bootstrap distribution (a weight is how often the row was
drawn), many resamples at once. The tests hold each figure against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SMALLEST_PROBABILITY = 1e-7  # a patient judged wrong with certainty costs 16.1 nats, not infinity
BINS = 15  # of equal width, as in Guo et al. 2017
_CELLS = 4_000_000  # weights held at once: 32 MB


@dataclass(frozen=True, eq=False)
class WeightedFigures:
    """Figures for each of several weightings; NaN where one cannot be formed.

    Attributes:
        loss: negative log likelihood, [weightings].
        accuracy: [weightings].
        ece: expected calibration error, [weightings].
        recall: [weightings, classes]; likewise f1, and auc (one against rest).
    """

    loss: np.ndarray
    accuracy: np.ndarray
    ece: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    auc: np.ndarray

    def named(self, without: np.ndarray) -> dict[str, np.ndarray]:
        """The overall figures by name, [weightings] each; those that cannot be formed are absent.

        Args:
            without: classes that macro figures are also given without, bool [classes].
        """
        named = {"loss": self.loss, "accuracy": self.accuracy, "ece": self.ece}
        macro = {"balanced_accuracy": self.recall, "macro_f1": self.f1, "macro_auc": self.auc}
        kept_by_ending = {"": np.ones_like(without)} | ({"_without_rare": ~without} if without.any() else {})
        for ending, kept in kept_by_ending.items():
            for name, per_class in macro.items():
                formed = per_class[:, kept & np.isfinite(per_class).all(axis=0)]
                if formed.shape[1]:
                    named[name + ending] = formed.mean(axis=1)
        return named


def losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each row, [rows]; a probability counts as at least 1e-7."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    nats: np.ndarray = -np.log(own.clip(SMALLEST_PROBABILITY, 1.0))
    return nats


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """Number of the bin (number / 15, (number + 1) / 15] that each confidence falls in."""
    return (np.ceil(confidence * BINS).astype(np.int64) - 1).clip(0, BINS - 1)


def resamples(labels: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights [some, rows], `count` in all: each class is drawn from itself, with replacement, to its own size.

    Source: Efron & Tibshirani 1993, the bootstrap within strata.
    """
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // len(labels))
    for start in range(0, count, step):
        weights = np.empty((min(step, count - start), len(labels)))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            weights[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=len(weights))
        yield weights


def weigh(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> WeightedFigures:
    """All figures of the rows under each weighting.

    Args:
        labels: class index, [rows].
        probabilities: [rows, classes].
        weights: [weightings, rows]; a row of them adds up to the number of rows.
    """
    rows, classes = probabilities.shape
    decisions = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    right = decisions == labels
    gap = np.zeros((rows, BINS))
    gap[np.arange(rows), bins_of(confidence)] = confidence - right
    one_hot = np.eye(classes)
    hits = weights @ (one_hot[labels] * right[:, None])
    having, given = weights @ one_hot[labels], weights @ one_hot[decisions]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / having
        f1 = np.where(having > 0, 2 * hits / (having + given), np.nan)
    return WeightedFigures(
        loss=weights @ losses(labels, probabilities) / rows,
        accuracy=weights @ right / rows,
        ece=np.abs(weights @ gap).sum(axis=1) / rows,
        recall=recall,
        f1=f1,
        auc=np.stack([_auc(labels == c, probabilities[:, c], weights) for c in range(classes)], axis=1),
    )


def _auc(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mann-Whitney statistic, [weightings]: how often a positive row scores above a negative one; equals count half."""
    if positive.all() or not positive.any():
        return np.full(len(weights), np.nan)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # where a new score begins
    weights, positive = weights[:, order], positive[order]
    above = np.add.reduceat(weights * positive, starts, axis=1)
    below = np.add.reduceat(weights * ~positive, starts, axis=1)
    won = above * (np.cumsum(below, axis=1) - below / 2)
    area: np.ndarray = won.sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1))
    return area
