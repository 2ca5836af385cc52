"""95 % confidence intervals of figures about patients, each by a formula that keeps its width near 1.

How often each holds the truth, at which numbers of patients, `tests/evaluation/test_intervals.py` simulates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, t

from raymed.evaluation.estimate import Estimate

Z = float(norm.ppf(0.975))
FEWEST = 5  # patients behind the interval of a mean: fewer resample to the same few means
_NEVER_SEEN = 0.5  # an error that nobody has made yet, between any two classes
_ALIKE = 0.01  # a resample whose standard error is less than this share of the sample's has nobody who differs in it
_FEW_DIFFER = 0.1  # share of such resamples, at most: one or two who differ make more, which then decide the interval's end


def wilson(share: float, patients: float) -> Estimate:
    """A share with its score interval (Wilson 1927). `patients` may be an effective number, and so no whole one."""
    centre = (share + Z**2 / (2 * patients)) / (1 + Z**2 / patients)
    reach = Z / (1 + Z**2 / patients) * np.sqrt(share * (1 - share) / patients + Z**2 / (4 * patients**2))
    return Estimate(share, float(max(0.0, min(share, centre - reach))), float(min(1.0, max(share, centre + reach))))


def share(count: int, of: int) -> Estimate | None:
    """A share of patients with Wilson's interval; None of nobody."""
    return wilson(count / of, of) if of else None


def difference_of_shares(first: np.ndarray, second: np.ndarray) -> Estimate:
    """By how much one share of the same patients is above another: method 10 of Newcombe 1998 (Statistics in Medicine 17,
    2635-2650), from the limits of both shares and how far the two go together.

    Args:
        first: whom it holds for, bool [patients]; likewise `second`.
    """
    many = len(first)
    one, other = wilson(float(first.mean()), many), wilson(float(second.mean()), many)
    value = one.value - other.value
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_one, only_other = int((first & ~second).sum()), int((~first & second).sum())
    product = both * neither - only_one * only_other
    agreeing = max(product - many / 2, 0.0) if product > 0 else float(product)
    spread = (both + only_one) * (only_other + neither) * (both + only_other) * (only_one + neither)
    together = agreeing / np.sqrt(spread) if spread else 0.0

    def reach(own: float, others: float) -> float:
        return float(np.sqrt(max(0.0, own**2 - 2 * together * own * others + others**2)))

    (low, high), (other_low, other_high) = ((each.low or 0.0, each.high or 0.0) for each in (one, other))
    below = reach(one.value - low, other_high - other.value)
    above = reach(high - one.value, other.value - other_low)
    return Estimate(value, value - below, value + above)


def mean_of_classes(values: np.ndarray, patients: np.ndarray) -> Estimate:
    """The mean of shares that belong to a class each (sensitivities, F1) with Wilson's interval.

    A mean of K independent shares of n_k patients varies like one share of K² / Σ(1 / n_k) patients.

    Args:
        values: [classes].
        patients: who have the class, [classes]; all at least 1.
    """
    return wilson(float(values.mean()), len(values) ** 2 / float((1 / patients).sum()))


def f1(hits: int, misses: int, false_alarms: int) -> Estimate:
    """F1 of a class. Of the patients who have the class or were given it, the share of hits J is binomial: Wilson's interval
    for J, carried over to F1 = 2 J / (1 + J)."""
    jaccard = wilson(hits / (hits + misses + false_alarms), hits + misses + false_alarms)
    value, low, high = (2 * each / (1 + each) for each in (jaccard.value, jaccard.low or 0.0, jaccard.high or 0.0))
    return Estimate(value, low, high)


def auc(area: float, positive: int, negative: int) -> Estimate:
    """The area under a ROC curve with its interval: method 5 of Newcombe 2006 (Statistics in Medicine 25, 559-573).

    Its ends are the areas A for which the one found lies just z standard errors away, with the variance
    A (1 - A) (1 + N (1 - A) / (2 - A) + N A / (1 + A)) / (positive * negative), N = (positive + negative) / 2 - 1.

    Args:
        positive: patients of the class; `negative`: all others. Both at least 1.
    """

    def low(area: float) -> float:
        if area == 0:
            return 0.0
        return float(brentq(lambda other: (area - other) ** 2 - Z**2 * variance(other), 0.0, min(area, 1 - 1e-12)))

    def variance(area: float) -> float:
        many = (positive + negative) / 2 - 1
        return area * (1 - area) * (1 + many * (1 - area) / (2 - area) + many * area / (1 + area)) / (positive * negative)

    return Estimate(area, low(area), 1 - low(1 - area))  # the variance is the same on both sides of 1/2


def weighted_mean(estimates: Sequence[Estimate], weights: np.ndarray, correlation: np.ndarray | None = None) -> Estimate:
    """A weighted mean of figures between 0 and 1, from their limits: MOVER (Zou & Donner 2008, Statistics in Medicine 27,
    1693-1702).

    Args:
        estimates: with limits.
        weights: adding up to 1, [estimates].
        correlation: of the figures, [estimates, estimates]; None where they are of different patients.
    """
    together = np.eye(len(weights)) if correlation is None else correlation
    values, lows, highs = np.array([(each.value, each.low, each.high) for each in estimates], dtype=float).T
    value = float(weights @ values)

    def reach(distances: np.ndarray) -> float:
        return float(np.sqrt((weights * distances) @ together @ (weights * distances)))

    return Estimate(value, max(0.0, value - reach(values - lows)), min(1.0, value + reach(highs - values)))


def over_folds(values: Sequence[float]) -> Estimate:
    """The mean of a figure over K folds, with the interval of training and judging anew.

    Folds share most of their training patients: the corrected resampled t of Nadeau & Bengio 2003 (Machine Learning 52,
    239-281).

    Args:
        values: one per fold, each of 1 / K of the patients.
    """
    folds = len(values)
    if folds < 2:
        return Estimate(values[0], None, None, "only 1 fold")
    error = float(np.std(values, ddof=1)) * (1 / folds + 1 / (folds - 1)) ** 0.5
    reach = float(t.ppf(0.975, folds - 1)) * error
    value = float(np.mean(values))
    return Estimate(value, value - reach, value + reach)


def macro_auc(areas: Sequence[Estimate], confusion: np.ndarray) -> Estimate:
    """The mean of areas, one class against the rest each, from their limits.

    A patient of one class that looks like another lowers the areas of both, so areas go together as far as the classes
    share their errors; two classes share all.

    Args:
        areas: one per class, with limits.
        confusion: patients by class and decision, [classes, classes].
    """
    errors = confusion + confusion.T + _NEVER_SEEN
    np.fill_diagonal(errors, 0)
    own = np.sqrt(errors.sum(axis=1)).clip(1e-9)  # 0 where there is one class only
    correlation = errors / np.outer(own, own)
    np.fill_diagonal(correlation, 1)
    return weighted_mean(areas, np.full(len(areas), 1 / len(areas)), correlation)


def mean(values: np.ndarray, resamples: int, seed: int, least: float = -np.inf, most: float = np.inf) -> Estimate:
    """A mean over patients with its bootstrap-t interval (Efron & Tibshirani 1993, ch. 12.5), which follows their skew.

    It is about the mean over all patients such as these: whoever is drawn, of whatever class.

    Args:
        values: one per patient, [patients].
        least, most: what they cannot be below and above. Where both are known, values that are all or nearly all the same
            have an interval, too: as many as Wilson's interval of those who differ leaves room for may have any other.
    """
    many, value = len(values), float(values.mean())
    if many < FEWEST:
        return Estimate(value, None, None, f"only {many}")
    centred = values - value
    weights = np.random.default_rng(seed).multinomial(many, np.full(many, 1 / many), size=resamples)
    means = weights @ centred / many
    errors = np.sqrt((weights @ centred**2 / many - means**2).clip(0) / (many - 1))
    own = float(centred.std()) / np.sqrt(many - 1)
    varied = errors > _ALIKE * own
    same = own <= 1e-12 * abs(value)
    if same or np.mean(~varied) > _FEW_DIFFER:
        if not np.isfinite([least, most]).all():
            return Estimate(
                value, None, None, f"{many} with the same value" if same else f"nearly all of {many} with the same value"
            )
        common = float(np.median(values))
        others = wilson(float(np.mean(abs(values - common) > own)), many).high or 0.0
        return Estimate(value, common - others * (common - least), common + others * (most - common))
    low, high = np.quantile(means[varied] / errors[varied], [0.025, 0.975])
    return Estimate(value, max(least, float(value - high * own)), min(most, float(value - low * own)))
