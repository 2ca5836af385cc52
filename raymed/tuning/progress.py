"""What a person sees while a search runs: bars on a terminal, one plain line per event otherwise."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from raymed.language import reworded, say
from raymed.recipes.metric import LAST, VAL_LOSS
from raymed.recipes.recipe import probe_of
from raymed.training.reports import LOST
from raymed.training.spec import RunSpec
from raymed.training.step_log import STEPS, TOTAL_STEPS
from raymed.tuning.budget import Budget
from raymed.tuning.study import Study

log = logging.getLogger("raymed")

OF_STEP = {
    "train_loss": "loss {value:.4f}",
    "lr": "lr {value:.2e}",
    "records_per_second": "{value:.1f} samples/s",
    "tokens_per_second": "{value:.0f} tokens/s",
}
QUIET = 30.0  # seconds between two lines of a trial's steps; its bar moves more often


class Progress:
    """Shows trials under way, the best so far and the time left, on standard error."""

    def __init__(
        self, study: Study, budget: Budget, label: Callable[[FrozenTrial], str], spec: Callable[[FrozenTrial], RunSpec]
    ) -> None:
        """`label` and `spec` tell what a trial is called, and its run."""
        self._study, self._budget, self._label, self._spec = study, budget, label, spec
        self._started, self._epochs_before = time.time(), study.trained
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[says]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[int, TaskID] = {}
        self._quiet_until: dict[int, float] = {}
        self._steps: dict[int, tuple[int, int]] = {}  # trained when a trial was validated last, and in all
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self._live:
            self._total = self._bars.add_task(say("search"), total=self._budget.trials, says="")
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._bars.stop()

    def show(self, number: int, happened: str, result: Mapping[str, Any]) -> None:
        """Steps, an epoch, a lost worker, or the end of a trial."""
        trial = self._study.trial(number)
        if happened == LOST:
            log.warning("%s  %s", self._label(trial), result[LOST])
            return
        if happened == STEPS:
            if "finished" not in result:  # whose own line comes next
                self._show_step(trial, result[STEPS][-1], result[TOTAL_STEPS])
        elif happened == "epoch":
            where, says = self._where(trial, result), "  ".join(self._figures(self._spec(trial), result))
            self._quiet_until[number] = time.monotonic() + QUIET
            self._steps[number] = int(result.get("global_step", 0)), int(result.get(TOTAL_STEPS, 0))
            if self._live:
                self._move(trial, result["global_step"], result[TOTAL_STEPS], f"{where}  {says}")
                self._bars.update(self._total, completed=self._finished(), says=self._summary())
            else:
                log.info("%s  %s  %s  |  %s", self._label(trial), where, says, self._summary())
        else:
            words = say({"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}[happened])
            reason = str(result.get("reason", "")) or (self._early_stop(trial) if happened == "COMPLETE" else "")
            if self._live:
                if number in self._tasks:
                    self._bars.remove_task(self._tasks.pop(number))
                self._bars.update(self._total, completed=self._finished(), says=self._summary())
            if happened == "PRUNED" and reason:
                log.info("%s  %s", self._label(trial), reason)  # which says that it was stopped
            elif reason or not self._live:
                told = say("{what}: {why}", what=words, why=reworded(reason)) if reason else words
                log.info("%s  %s", self._label(trial), told)

    def _early_stop(self, trial: FrozenTrial) -> str:
        """Why a run that was trained to its end has fewer steps than it might have had; empty where it has all."""
        spec = self._spec(trial)
        if not spec.train.patience:
            return ""
        if spec.train.steps or spec.train.validate_steps:
            step, steps = self._steps.get(trial.number, (0, 0))  # none where the end alone was told again
            if step >= steps:
                return ""
            return say(
                "early stopping after step {step} of {steps}, {patience} validations without a better {metric}",
                step=step,
                steps=steps,
                patience=spec.train.patience,
                metric=spec.watched.name,
            )
        if trial.last_step == spec.train.epochs:
            return ""
        return say(
            "early stopping after epoch {epoch} of {epochs}, {patience} epochs without a better {metric}",
            epoch=trial.last_step,
            epochs=spec.train.epochs,
            patience=spec.train.patience,
            metric=spec.watched.name,
        )

    def _figures(self, spec: RunSpec, result: Mapping[str, Any]) -> Iterator[str]:
        """Of an epoch: the system's metrics of training, its val_loss, and what the best epoch is chosen by."""
        probe = probe_of(spec.recipe)
        always = {VAL_LOSS.name, spec.train.monitor, *(metric.name for metric in (probe.metrics if probe else ()))}
        for metric in spec.recipe.metrics:
            shown = metric.name.startswith("train_") or metric.name in always
            if shown and metric.name in result:
                yield metric.show(result[metric.name])
        if spec.monitor not in (VAL_LOSS, LAST):
            yield say("best {value}", value=spec.monitor.show(result[f"best_{spec.monitor.name}"]))

    def _show_step(self, trial: FrozenTrial, row: Mapping[str, float], total: int) -> None:
        says, step = _in_words(row, OF_STEP), int(row["global_step"])
        where = say("step {step}/{steps}", step=step, steps=total)
        says = f"{where}  {says}  |  {time_left((total - step) * row['seconds'])}"
        if self._live:
            self._move(trial, step, total, says)
        elif time.monotonic() >= self._quiet_until.get(trial.number, 0.0):
            self._quiet_until[trial.number] = time.monotonic() + QUIET
            log.info("%s  %s", self._label(trial), says)

    def _move(self, trial: FrozenTrial, step: int, total: int, says: str) -> None:
        """A trial's bar."""
        task = self._tasks.get(trial.number)
        if task is None:
            task = self._tasks[trial.number] = self._bars.add_task(self._label(trial), total=total, says="")
        self._bars.update(task, completed=step, says=says)

    def _where(self, trial: FrozenTrial, result: Mapping[str, Any]) -> str:
        train = self._spec(trial).train
        if train.steps or train.validate_steps:
            return say("step {step}/{steps}", step=result["global_step"], steps=result[TOTAL_STEPS])
        return say("epoch {epoch}/{epochs}", epoch=result["epoch"], epochs=train.epochs)

    def _finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self._study.trials)

    def _summary(self) -> str:
        best, objective = self._study.best, self._study.objective
        left = self._time_left()
        if objective == LAST:
            found = say("not validated")
        elif best:
            reached = objective.format.format(self._study.best_value(best))
            found = say("best {value} ({trial})", value=reached, trial=self._label(best))
        else:
            found = say("no result yet")
        return f"{found}, {left}" if left else found

    def _time_left(self) -> str:
        """Until the deadline, or by the epochs that a finished trial took on average."""
        if math.isfinite(self._budget.seconds_left):
            seconds = max(0.0, self._budget.seconds_left)
        else:
            finished = [trial for trial in self._study.trials if trial.state.is_finished()]
            trained = self._study.trained - self._epochs_before
            if not finished or not trained:
                return ""
            per_trial = sum(trial.last_step or 0 for trial in finished) / len(finished)
            missing = (self._budget.trials - len(finished)) * per_trial
            seconds = missing * (time.time() - self._started) / trained
        return time_left(seconds)


def _in_words(metrics: Mapping[str, Any], forms: Mapping[str, str]) -> str:
    return "  ".join(say(form, value=metrics[name]) for name, form in forms.items() if name in metrics)


def time_left(seconds: float) -> str:
    """A time to wait, as a person reads it."""
    if seconds < 60:
        return say("under a minute left")
    return say("about {hours}:{minutes:02d} h left", hours=int(seconds // 3600), minutes=int(seconds % 3600 // 60))
