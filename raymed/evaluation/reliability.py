"""Whether probabilities mean what they say: confidence against the share that is right.

The calibration error (ECE) of a perfectly calibrated model is not 0: of few patients it is large by chance alone. So it
stands beside what a perfect model would show on these patients (Bröcker & Smith 2007, Weather and Forecasting 22, 651-661).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp
from scipy.stats import chi2

from raymed.evaluation.estimate import Estimate
from raymed.evaluation.intervals import wilson

BINS = 15  # of equal width, as in Guo et al. 2017
SLOPES = (-5.0, 50.0)  # between which the calibration slope is looked for


@dataclass(frozen=True)
class ReliabilityBin:
    """Patients whose decision had a confidence in (low, high]: mean confidence against the share that was right."""

    low: float
    high: float
    patients: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word.

    Attributes:
        error: expected calibration error over 15 bins of confidence.
        perfect: the mean error that a perfectly calibrated model with these confidences would show.
        perfect_high: the error that it would stay below in 95 of 100 such groups of patients.
        slope: of the log probabilities, 1 at best; below 1 the model is too sure (Cox 1958). None where every decision is
            right: then no slope is too large.
        gap: share that is right minus mean confidence, 0 at best; below 0 the model is too sure.
        bins: those that hold a patient.
    """

    error: float
    perfect: float
    perfect_high: float
    slope: Estimate | None
    gap: Estimate
    bins: tuple[ReliabilityBin, ...]

    @property
    def beyond_chance(self) -> bool:
        """Whether the error is larger than a perfect model's would be by chance."""
        return self.error > self.perfect_high

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray, resamples: int, seed: int) -> Calibration:
        """Args: labels: class indices, [patients]; probabilities: [patients, classes]."""
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        drawn = np.random.default_rng(seed).random((resamples, len(labels))) < confidence
        chance = calibration_error(confidence, drawn)
        accuracy = wilson(float(right.mean()), len(right))
        sure = float(confidence.mean())
        return cls(
            error=float(calibration_error(confidence, right)),
            perfect=float(chance.mean()),
            perfect_high=float(np.quantile(chance, 0.95)),
            slope=slope(labels, probabilities),
            gap=Estimate(accuracy.value - sure, (accuracy.low or 0.0) - sure, (accuracy.high or 0.0) - sure),
            bins=_bins(confidence, right),
        )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """ECE (Guo et al. 2017, eq. 3): mean over patients of how far each one's bin is off.

    Args:
        confidence: [patients].
        right: bool [..., patients].

    Returns:
        [...].
    """
    members = np.eye(BINS)[_bin_numbers(confidence)]
    error: np.ndarray = np.abs((right - confidence) @ members).sum(axis=-1) / len(confidence)
    return error


def slope(labels: np.ndarray, probabilities: np.ndarray) -> Estimate | None:
    """The calibration slope b: the patients' classes are most likely under probabilities proportional to p ** b.

    Its interval holds every b whose likelihood ratio to the best is not significant (Wilks 1938).
    """
    logs = np.log(probabilities.clip(1e-7))

    def nats(b: float) -> float:
        return float((logsumexp(b * logs, axis=1) - b * logs[np.arange(len(labels)), labels]).sum())

    if (probabilities.argmax(axis=1) == labels).all():
        return None
    best = minimize_scalar(nats, bounds=SLOPES, method="bounded", options={"xatol": 1e-6})

    def beyond(b: float) -> float:
        return nats(b) - float(best.fun) - float(chi2.ppf(0.95, 1)) / 2

    low, high = (float(brentq(beyond, best.x, end)) if beyond(end) > 0 else end for end in SLOPES)
    return Estimate(float(best.x), low, high)


def _bin_numbers(confidence: np.ndarray) -> np.ndarray:
    """Number of the bin (number / 15, (number + 1) / 15] that each confidence falls in."""
    return (np.ceil(confidence * BINS).astype(np.int64) - 1).clip(0, BINS - 1)


def _bins(confidence: np.ndarray, right: np.ndarray) -> tuple[ReliabilityBin, ...]:
    bins = _bin_numbers(confidence)
    return tuple(
        ReliabilityBin(
            low=number / BINS,
            high=(number + 1) / BINS,
            patients=int((bins == number).sum()),
            confidence=float(confidence[bins == number].mean()),
            accuracy=float(right[bins == number].mean()),
        )
        for number in np.unique(bins).tolist()
    )
