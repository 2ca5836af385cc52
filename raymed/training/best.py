"""Which epoch is the best so far, and how long a better one has been waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymed.errors import RunError

Monitor = Literal["val_loss", "val_acc", "val_choice_loss"]
HIGHER_IS_BETTER = {"val_loss": False, "val_acc": True, "val_choice_loss": False}


@dataclass
class Best:
    """The best epoch by the monitored metric. Part of a checkpoint, so that waiting goes on where it was.

    Attributes:
        epoch: the epoch whose model is kept (0 = none yet).
        value: the monitored metric in that epoch.
        mark: what a later epoch must beat by more than the smallest improvement, for waiting to start anew.
        waited: epochs since one did.
    """

    epoch: int = 0
    value: float | None = None
    mark: float | None = None
    waited: int = 0

    def update(self, epoch: int, metrics: dict[str, float], monitor: Monitor, min_delta: float) -> bool:
        """Compare an epoch with the best before it, then remember it; True when its model is the best so far.

        Raises:
            RunError: the recipe does not give the metric.
        """
        if monitor not in metrics:
            raise RunError(f"train.monitor is {monitor}, which this system does not give; it gives {', '.join(metrics)}")
        value = metrics[monitor]
        better = self.value is None or _beats(value, self.value, 0.0, monitor)
        if better:
            self.epoch, self.value = epoch, value
        if self.mark is None or _beats(value, self.mark, min_delta, monitor):
            self.mark, self.waited = value, 0
        else:
            self.waited += 1
        return better


def _beats(value: float, other: float, by: float, monitor: Monitor) -> bool:
    return value > other + by if HIGHER_IS_BETTER[monitor] else value < other - by
