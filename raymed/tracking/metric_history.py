"""The metrics of runs over their validations and steps, each written once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Metric

from raymed.tracking.names import metric_name

LAST_OF_STEP = "step/lr"  # of a step's metrics the one that is written last: who finds it finds all
MOST_METRICS = 1000  # that MLflow takes in one request


@dataclass(frozen=True)
class MetricHistory:
    """What is written of runs through one client, which alone writes them."""

    client: MlflowClient
    _validations: dict[str, set[int]] = field(default_factory=dict, repr=False)  # run -> those that are there
    _steps: dict[str, int] = field(default_factory=dict, repr=False)  # run -> the last one that is there

    def log_validation(
        self, run_id: str, epoch: int, metrics: Mapping[str, float], at: int | None = None, counted: str = "epoch"
    ) -> None:
        """Write the metrics of a validation at once; one that is already there is left as it is.

        Args:
            epoch: when it was, as validations are counted: the epoch, or the optimizer step.
            counted: the metric that holds that.
            at: when it was, in milliseconds (default: now). MLflow takes the same value at the same time for one.
        """
        done = self._validations.get(run_id)
        if done is None:
            history = self.client.get_metric_history(run_id, counted)
            done = self._validations[run_id] = {metric.step for metric in history}
        if epoch in done:
            return
        try:
            self.write(run_id, {**metrics, counted: epoch}, epoch, at, last=counted)
        except BaseException:
            del self._validations[run_id]  # it may have been written all the same
            raise
        done.add(epoch)

    def forget(self, run_id: str) -> None:
        """Ask anew what is there of a run: its database may have been set back meanwhile."""
        self._validations.pop(run_id, None)

    def log_steps(self, run_id: str, rows: Sequence[Mapping[str, float]], at: int | None = None) -> None:
        """Write what single steps computed, as ``step/NAME`` at each row's ``global_step``; steps that are there are left.

        Args:
            rows: in the order of their steps.
            at: see `log_validation`.
        """
        last = self._steps.pop(run_id, None)
        if last is None:
            last = max((metric.step for metric in self.client.get_metric_history(run_id, LAST_OF_STEP)), default=0)
        when = int(time.time() * 1000) if at is None else at
        new = [row for row in rows if row["global_step"] > last]
        fitting = MOST_METRICS // max(map(len, new), default=1)
        for start in range(0, len(new), fitting):
            part = new[start : start + fitting]
            metrics = [
                Metric(metric_name(f"step/{name}"), float(value), when, int(row["global_step"]))
                for row in part
                for name, value in row.items()
                if name != "global_step"
            ]
            self.client.log_batch(run_id, sorted(metrics, key=lambda metric: (metric.step, metric.key == LAST_OF_STEP)))
        self._steps[run_id] = max([last, *(int(row["global_step"]) for row in new)])

    def write(self, run_id: str, metrics: Mapping[str, float], step: int, at: int | None = None, last: str = "") -> None:
        """Write metrics in one request, whether they are there or not; who finds the `last` one finds all."""
        when = int(time.time() * 1000) if at is None else at
        rows = [Metric(metric_name(name), float(value), when, step) for name, value in metrics.items()]
        self.client.log_batch(run_id, sorted(rows, key=lambda row: row.key == last))
