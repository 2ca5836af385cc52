"""A figure and how sure it is: its 95 % confidence interval, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raymed.language import reworded, say


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval.

    Attributes:
        value: the figure.
        low: lower end of its interval; None where the patients do not suffice for one.
        high: upper end.
        why: why it has no interval, in words.
    """

    value: float
    low: float | None
    high: float | None
    why: str = ""

    def interval(self, digits: int = 3, scale: float = 1.0, between: str = ", ") -> str:
        """The interval in words, both ends times `scale`."""
        if self.low is None or self.high is None:
            count = self.why.removeprefix("only ")
            why = say("only {count}", count=count) if count.isdigit() else reworded(say(self.why))
            return say("not estimable ({why})", why=why)
        return f"{self.low * scale:.{digits}f}{between}{self.high * scale:.{digits}f}"

    def __str__(self) -> str:
        interval = self.interval()
        return f"{self.value:.3f} {interval if self.low is None else f'[{interval}]'}"


def bootstrapped(value: float, resampled: np.ndarray, labels: np.ndarray) -> Estimate:
    """A figure with its percentile interval (Efron & Tibshirani 1993), from resamples within classes.

    Where no class has two patients, every resample is the sample itself and shows nothing of how sure the figure is.

    Args:
        resampled: the figure in each resample.
        labels: class index of each patient that it rests on, not empty.
    """
    if np.bincount(labels).max() == 1:
        return Estimate(value, None, None, "only 1" if len(labels) == 1 else "only 1 of each class")
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def flatten(named: Mapping[str, Estimate | None]) -> dict[str, float]:
    """Every figure under one name, and its interval where it has one: ``loss``, ``loss_low``, ``loss_high``."""
    flat: dict[str, float] = {}
    for name, estimate in named.items():
        if estimate is not None:
            flat[name] = estimate.value
            if estimate.low is not None and estimate.high is not None:
                flat |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return flat
