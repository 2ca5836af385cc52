"""What a model says of single slices, each by itself: where a patient's decision comes from, and no figure of patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymed.evaluation.calibration import Temperature
from raymed.evaluation.patients import softmax
from raymed.evaluation.scores import Scores, overall


@dataclass(frozen=True)
class SingleSlices:
    """Figures of slices. They have no intervals: slices of a patient err together, and each is given the patient's
    diagnosis, also where it shows nothing of it.

    Attributes:
        count: how many slices.
        figures: as `overall` has them.
        recall: share of a class's slices that are given it, by the class's name; of classes that there are.
        confusion: slices by class (row) and decision (column).
    """

    count: int
    figures: dict[str, float]
    recall: dict[str, float]
    confusion: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> SingleSlices:
        """Args: labels: class indices, [slices]; probabilities: [slices, classes]."""
        scores = Scores.of(labels, probabilities)
        known = zip(class_names, scores.recall.tolist(), strict=True)
        return cls(
            len(labels),
            overall(labels, probabilities),
            {name: value for name, value in known if np.isfinite(value)},
            tuple(tuple(row) for row in scores.confusion.tolist()),
        )

    def flat(self) -> dict[str, float]:
        """Every figure under one name each, for a metric store."""
        return {f"slice_{name}": value for name, value in self.figures.items()} | {
            f"slice_sensitivity_{name}": value for name, value in self.recall.items()
        }


def probabilities_of(logits: np.ndarray, temperature: Temperature) -> np.ndarray:
    """Calibrated probabilities of single slices, [slices, classes], from their logits."""
    return temperature.scale(softmax(logits, temperature.logits), np.ones(len(logits)))
