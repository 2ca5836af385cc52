"""What a search took: hours of workers and, by the prices that a person stated, money."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from raymed.cluster.prices import Prices
from raymed.training.fit import Resources
from raymed.tuning.study import SECONDS, Study

COST = "cost"  # the name of the money, among what a search took


@dataclass(frozen=True)
class Cost:
    """Of trials that each took so much, by prices that may not be known."""

    each: Resources
    prices: Prices | None

    @classmethod
    def stated(cls, each: Resources) -> Cost:
        """By the prices of ``RAYMED_PRICES``, which are of GPUs."""
        return cls(each, Prices.stated() if each.gpus else None)

    @property
    def unit(self) -> str:
        return "GPU hours" if self.each.gpus else "CPU worker hours"

    def hours(self, *trials: FrozenTrial) -> float:
        """Of GPUs, or of workers on CPUs, while they trained and validated."""
        seconds: float = sum(trial.user_attrs.get(SECONDS, 0.0) for trial in trials)
        return seconds / 3600 * self.each.workers * (self.each.gpus or 1.0)

    def of_trial(self, trial: FrozenTrial) -> str:
        """What a trial took, for a person to read: its hours, and its GPUs' money."""
        hours = self.hours(trial)
        return f"{hours:.2f} h" + (f", {hours * self.prices.gpu:.2f}" if self.prices else "")

    def of_search(self, study: Study) -> dict[str, str]:
        """What a search took, by name, for a person to read."""
        hours = self.hours(*study.trials)
        took = {f"{study.noun}s": str(study.trained), self.unit: f"{hours:.2f}"}
        return took | ({COST: self.prices.paid(hours, study.spent / 3600)} if self.prices else {})
