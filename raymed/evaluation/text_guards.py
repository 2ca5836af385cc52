"""Tests that a model of texts about pictures has to pass before its other figures mean anything.

It must look at the picture, say more than always the same, and be worth more than a simple one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymed.errors import UserError
from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.text_metrics import RESAMPLES, TextScores


@dataclass(frozen=True)
class Guard:
    """One test.

    Attributes:
        name: of it.
        passed: whether the difference is surely on the right side of 0: its 95 % interval is.
        difference: mean over patients, paired.
        ratio: of the two losses, or None where it is no loss.
        words: what was found, for a person.
    """

    name: str
    passed: bool
    difference: Estimate
    ratio: float | None
    words: str


@dataclass(frozen=True, eq=False)
class CaptionLosses:
    """Summed cross-entropy and tokens of each text.

    Attributes:
        patients: whose text it is, [rows].
        nll: nats, [rows].
        tokens: supervised tokens, [rows].
    """

    patients: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray

    @property
    def by_patient(self) -> np.ndarray:
        """Nats per token of each patient, in the order of their ids."""
        owner = np.unique(np.asarray(self.patients, dtype=object), return_inverse=True)[1]
        nats: np.ndarray = np.bincount(owner, weights=self.nll) / np.bincount(owner, weights=self.tokens)
        return nats


def swap_patients(patients: np.ndarray, seed: int) -> np.ndarray:
    """For each row the row whose picture it gets instead, always another patient's, [rows]; each row's is given once.

    Raises:
        UserError: one patient has more than half of the rows.
    """
    _, owner, counts = np.unique(np.asarray(patients, dtype=object), return_inverse=True, return_counts=True)
    if 2 * counts.max() > len(owner):
        raise UserError("pictures cannot be swapped between patients: one has more than half of them. Choose a larger split")
    order = np.argsort(np.random.default_rng(seed).permutation(len(counts))[owner], kind="stable")
    swapped = np.empty(len(owner), dtype=np.int64)
    swapped[order] = np.roll(order, counts.max())  # a patient's rows stand together, and nobody has more
    return swapped


def shuffle_guard(own: CaptionLosses, swapped: CaptionLosses, seed: int = 0) -> Guard:
    """Whether the loss rises where pictures are swapped between patients: else the texts were written without looking."""
    difference = intervals.mean(swapped.by_patient - own.by_patient, RESAMPLES, seed)
    ratio = float(swapped.by_patient.mean() / own.by_patient.mean())
    passed = (difference.low or 0.0) > 0
    found = "looks at the picture" if passed else "does not surely look at the picture"
    words = (
        f"loss {own.by_patient.mean():.3f}, with another patient's picture {swapped.by_patient.mean():.3f} ({ratio:.2f}x)"
    )
    return Guard("image shuffle", passed, difference, ratio, f"{words}: the model {found}")


def commonest_guard(scores: TextScores, baseline: TextScores, seed: int = 0) -> Guard:
    """Whether findings are named better than by one report for everybody.

    Args:
        baseline: of the commonest training report in place of every text.
    """
    difference = intervals.mean(
        scores.by_patient["finding_f1"] - baseline.by_patient["finding_f1"], RESAMPLES, seed, -1.0, 1.0
    )
    passed = (difference.low or 0.0) > 0
    own, other = (figures.metrics["finding_f1"].value for figures in (scores, baseline))
    found = "better" if passed else "not surely better"
    words = f"finding F1 {own:.3f}, of the commonest report {other:.3f}: {found} than one report for everybody"
    return Guard("commonest report", passed, difference, None, words)


def simple_guard(own: CaptionLosses, simple: CaptionLosses, name: str, seed: int = 0) -> Guard:
    """Whether the loss is below that of a simple model of the same size on the same texts.

    Args:
        name: what the simple model is called.

    Raises:
        UserError: the two are about other patients.
    """
    if not np.array_equal(np.unique(own.patients.astype(str)), np.unique(simple.patients.astype(str))):
        raise UserError(f"the {name} was judged on other patients: evaluate both on one split of the same data")
    difference = intervals.mean(simple.by_patient - own.by_patient, RESAMPLES, seed)
    passed = (difference.low or 0.0) > 0
    found = "better" if passed else "worse" if (difference.high or 0.0) < 0 else "not surely better"
    words = f"loss {own.by_patient.mean():.3f}, {name} {simple.by_patient.mean():.3f}: {found} than the {name}"
    return Guard(name, passed, difference, float(simple.by_patient.mean() / own.by_patient.mean()), words)
