"""Which epoch is the best so far, and how long a better one has been waited for."""

from __future__ import annotations

from dataclasses import dataclass

from raymed.errors import RunError
from raymed.recipes.metric import Metric


@dataclass
class Best:
    """The best epoch by the monitored metric. Part of a checkpoint, so that waiting goes on where it was.

    Attributes:
        epoch: the epoch whose model is kept (0 = none yet).
        value: the monitored metric in that epoch.
        mark: what a later epoch's watched metric must beat by more than the smallest improvement, for waiting to start anew.
        waited: epochs since one did.
    """

    epoch: int = 0
    value: float | None = None
    mark: float | None = None
    waited: int = 0

    def update(
        self, epoch: int, metrics: dict[str, float], monitor: Metric, min_delta: float, watched: Metric | None = None
    ) -> bool:
        """Compare an epoch with the best before it, then remember it; True when its model is the best so far.

        Args:
            watched: what early stopping waits for, where that is another metric.

        Raises:
            RunError: the epoch does not have the metrics.
        """
        watched = watched or monitor
        for name, metric in (("monitor", monitor), ("patience_monitor", watched)):
            if metric.name not in metrics:
                raise RunError(f"train.{name} is {metric.name}, and the epoch has none; it has {', '.join(metrics)}")
        value, seen = metrics[monitor.name], metrics[watched.name]
        better = self.value is None or monitor.is_better(value, self.value)
        if better:
            self.epoch, self.value = epoch, value
        if self.mark is None or watched.is_better(seen, self.mark, min_delta):
            self.mark, self.waited = seen, 0
        else:
            self.waited += 1
        return better
