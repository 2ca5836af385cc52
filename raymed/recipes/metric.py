"""A system's metrics, declared: what each is called, how it is written, which way is better, what may be chosen by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A figure that a system gives of every epoch.

    Attributes:
        name: key in what `Recipe.evaluate` gives; ``train_...`` for one of training.
        unit: what it is counted in; empty where it is a share.
        direction: whether the lowest or the highest is the best.
        format: how a value is written, as for `str.format`.
        chooses_epoch: whether the best epoch of a run may be chosen by it (`train.monitor`).
        chooses_trial: whether a search may compare trials by it, each by its best epoch (`search.objective`).
    """

    name: str
    unit: str
    direction: Literal["min", "max"]
    format: str
    chooses_epoch: bool = False
    chooses_trial: bool = False

    def __post_init__(self) -> None:
        if self.chooses_trial and not self.chooses_epoch:
            raise ValueError(f"{self.name} chooses trials by their best epochs: it must choose those too")

    def is_better(self, value: float, other: float, by: float = 0.0) -> bool:
        """Whether `value` beats `other` by more than `by`."""
        return value < other - by if self.direction == "min" else value > other + by

    def best(self, values: Iterable[float]) -> float:
        """The best of the values; the worst there can be where there is none."""
        return min(values, default=float("inf")) if self.direction == "min" else max(values, default=float("-inf"))

    def show(self, value: float) -> str:
        """The name and a value, as a person reads them."""
        return f"{self.name} {self.format.format(value)}"


VAL_LOSS = Metric("val_loss", "nats", "min", "{:.4f}", chooses_epoch=True, chooses_trial=True)
"""What every system gives."""

LAST = Metric("global_step", "steps", "max", "{:.0f}", chooses_epoch=True)
"""How far a run was trained: by it the last epoch is the best, as of a run that nobody validates."""

CLASSIFIER = (
    Metric("train_loss", "nats", "min", "{:.4f}"),
    Metric("train_accuracy", "", "max", "{:.1%}"),
    VAL_LOSS,
    *(
        Metric(name, "", "max", "{:.3f}", chooses_epoch=True, chooses_trial=True)
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc")
    ),
    Metric("ece", "", "min", "{:.3f}"),
)
"""What `judge_patients` gives of a classifier's patients, but for its classes and its slices."""
