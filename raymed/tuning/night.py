"""A night: Ray Tune runs the study's trials over one decoded data set, and MLflow gets one child run per trial.

Running the same night again goes on with it: finished trials stay, unfinished ones continue from their checkpoints.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune

from raymed.data.plan import EpochPlan
from raymed.data.prepared import Prepared
from raymed.data.stream import open_reader
from raymed.errors import RunError, UserError
from raymed.job import Outcome
from raymed.judgement import Candidate
from raymed.tracking import Status, Tracker
from raymed.training.fit import Resources, fit_trial, resources
from raymed.training.loop import RANK, FitSpec
from raymed.training.verdict import Verdicts
from raymed.tuning.progress import Progress
from raymed.tuning.space import Space, Value, get_setting, with_setting
from raymed.tuning.study import (
    BEST_EPOCH,
    CHECKPOINT,
    REASON,
    Budget,
    Halving,
    Study,
    StudyScheduler,
    StudySearcher,
    best_value,
)

log = logging.getLogger("raymed")

DRIVER_CPUS = 0.01  # a trial's driver only waits for its workers, and Tune refuses exactly 0
STATUS: dict[str, Status] = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}


@dataclass(frozen=True)
class SearchSettings:
    """How a search is run.

    Attributes:
        space: Settings that are searched, by dotted name (see raymed/tuning/space.py).
        halving: When trials are stopped early.
        concurrent: Trials at once (0 = as many as the cluster holds).
        cpus_per_worker: CPUs of each training worker.
    """

    space: Space = field(default_factory=dict)
    halving: Halving = field(default_factory=Halving)
    concurrent: int = 0
    cpus_per_worker: int = 1


@dataclass(frozen=True)
class Night:
    """A search: the run that every trial is a variation of, what varies, and until when.

    Attributes:
        template: name (the search's own), storage, data, recipe and settings that trials start from.
        search: what varies and how trials are stopped.
        budget: when it ends.
        tracking_uri: MLflow's address.
        command: what was typed, for the report.
    """

    template: FitSpec
    search: SearchSettings
    budget: Budget
    tracking_uri: str
    command: str = ""

    @property
    def name(self) -> str:
        return self.template.name

    def open_study(self) -> Study:
        """The search's record."""
        defaults = {name: self._get(name) for name in self.search.space}
        space, halving = self.search.space, self.search.halving
        return Study(self._study_path(), self.name, space, defaults, halving, self.template.seed)

    def _study_path(self) -> Path:
        """On a local disk beside the search's runs, or under the home folder where the storage is remote."""
        folder = self.template.folder
        return (Path(folder.path) if folder.is_local else Path.home() / ".raymed" / self.name) / "study.journal"

    def open_tracker(self) -> Tracker:
        return Tracker.open(self.tracking_uri, f"raymed-{self.template.recipe.name}")

    def forget(self) -> None:
        """Remove what an earlier search of this name left: its folder, its study and its runs in MLflow."""
        self.template.folder.delete()
        self._study_path().unlink(missing_ok=True)
        self.open_tracker().forget(self.name)

    def trial(self, number: int, params: Mapping[str, Value]) -> FitSpec:
        """The run of a trial: the template with the searched settings put in."""
        spec = dataclasses.replace(self.template, name=f"trial-{number:04d}", storage=f"{self.template.folder.uri}/trials")
        for name, value in params.items():
            if name.startswith("train."):
                spec = with_setting(spec, name, value)
            else:
                spec = dataclasses.replace(spec, recipe=with_setting(spec.recipe, name, value))
        return spec

    def _get(self, name: str) -> Value:
        return get_setting(self.template if name.startswith("train.") else self.template.recipe, name)

    def resources(self) -> tuple[Resources, int]:
        """What each trial takes, and how many run at once.

        Raises:
            UserError: not even one trial fits into the cluster.
        """
        each = resources(self.template.workers, self.search.cpus_per_worker)
        have = ray.cluster_resources()
        fitting = int(have["CPU"] / (each.workers * each.cpus + DRIVER_CPUS))
        if each.gpu:
            fitting = min(fitting, int(have["GPU"] / each.workers))
        if not fitting:
            raise UserError(
                f"one trial needs {each.workers} x {each.cpus} CPUs and a little for its driver: lower --workers"
            )
        return each, min(self.search.concurrent or fitting, fitting)

    def run(self) -> Study:
        """Search until the budget is used up; the study tells how every trial ended."""
        prepared = Prepared.open(self.template.data)
        study, tracker = self.open_study(), self.open_tracker()
        each, concurrent = self.resources()
        parent = self._start_parent(tracker, prepared)
        source = open_reader(prepared, self.template.all_rows(prepared))
        verdicts = Verdicts.remote()  # type: ignore[attr-defined]
        with Progress(study, self.budget, self.template.train.epochs) as progress:
            recorder = _Recorder(self, tracker, parent, study, progress)
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(fit_trial, source=source, each=each, verdicts=verdicts), {"CPU": DRIVER_CPUS}
                ),
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(study, self.budget, self.trial),
                    scheduler=StudyScheduler(study, self.budget, verdicts, recorder.observe),
                    num_samples=-1,
                    max_concurrent_trials=concurrent,
                    trial_dirname_creator=lambda trial: trial.config["spec"].name,
                ),
                run_config=tune.RunConfig(
                    name=f"tune-{datetime.now():%Y%m%d-%H%M%S}", storage_path=self.template.folder.uri, verbose=0
                ),
            )
            os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
            try:
                tuner.fit()
            except KeyboardInterrupt:  # trials under way stay RUNNING in the study: the same command goes on with them
                recorder.interrupt()
                raise
        self._settle(study, recorder)
        return study

    def outcome(self, study: Study) -> Outcome:
        """What a single run leaves.

        Raises:
            RunError: the run failed.
        """
        trial = study.trials[0]
        run = self.open_tracker().find(self.trial_key(0))
        if CHECKPOINT not in trial.user_attrs:
            raise RunError(f"the run failed: {trial.user_attrs.get(REASON, 'no epoch was completed')}")
        val_loss, epoch = best_value(trial), trial.user_attrs[BEST_EPOCH]
        checkpoint = trial.user_attrs[CHECKPOINT]
        lines = [
            f"val_loss {val_loss:.4f} in epoch {epoch} of {trial.last_step}; checkpoint {checkpoint}",
            f"look at it: mlflow ui --backend-store-uri {self.tracking_uri}",
            f"judge and register it: python jobs/promote.py {run}",
        ]
        data = {"run_id": run, "name": self.name, "val_loss": val_loss, "best_epoch": epoch, "checkpoint": checkpoint}
        return Outcome("\n".join(lines), data | {"epochs": trial.last_step, "tracking_uri": self.tracking_uri})

    def candidate(self, run_id: str, trial: FrozenTrial) -> Candidate:
        """What a trial left to be judged: its best checkpoint so far."""
        spec = self.template
        return Candidate(run_id, trial.user_attrs[CHECKPOINT], spec.data, spec.fold, spec.slices, spec.seed)

    def trial_key(self, number: int) -> str:
        """The key under which MLflow knows a trial."""
        return f"{self.name}/trial-{number:04d}"

    def _start_parent(self, tracker: Tracker, prepared: Prepared) -> str:
        plan: EpochPlan = self.template.plan(prepared, 0)
        parent = tracker.run(
            self.name,
            self.name,
            tags={
                "raymed.system": self.template.recipe.name,
                "raymed.data": self.template.data,
                "raymed.command": self.command,
            },
            params={"data_digest": prepared.digest, "space": {n: repr(d) for n, d in self.search.space.items()}},
        )
        tracker.reopen(parent)
        tracker.input(parent, self.name, prepared.digest, self.template.data, "training")
        log.info(
            "plan: %d slices an epoch in %d steps; left out: %s",
            sum(len(batch) for batch in plan.batches),
            len(plan.batches),
            ", ".join(f"{count} {reason}" for reason, count in plan.left_out.items()),
        )
        return parent

    def _settle(self, study: Study, recorder: _Recorder) -> None:
        """Trials that Tune lost sight of must not stay RUNNING in the study or in MLflow."""
        for trial in study.trials:
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, TrialState.FAIL, "Ray Tune ended without it")
                recorder.observe(trial.number, "FAIL", {"reason": "Ray Tune ended without it"})


class _Recorder:
    """Writes what happens to trials into MLflow and onto the progress display."""

    def __init__(self, night: Night, tracker: Tracker, parent: str, study: Study, progress: Progress) -> None:
        self._night, self._tracker, self._parent = night, tracker, parent
        self._study, self._progress = study, progress
        self._runs: dict[int, str] = {}

    def observe(self, number: int, happened: str, result: Mapping[str, Any]) -> None:
        run = self._run(number)
        if happened == "start":
            return
        trial = self._study.study.get_trials(deepcopy=False)[number]
        if happened == "epoch":
            metrics = {name: value for name, value in result.items() if _is_metric(name, value)}
            self._tracker.log_epoch(run, int(result["epoch"]), metrics)
            if CHECKPOINT in trial.user_attrs:
                self._tracker.tags(run, self._night.candidate(run, trial).tags())
        else:
            self._tracker.tags(run, {"raymed.state": happened})
            self._tracker.finish(run, STATUS[happened], str(result.get("reason", "")))
        self._progress.show(number, happened, result)

    def interrupt(self) -> None:
        """A person stopped the search: MLflow shows nothing as running."""
        reason = "interrupted; the same command goes on"
        for trial in self._study.trials:
            if trial.state == TrialState.RUNNING:
                self._tracker.finish(self._run(trial.number), "KILLED", reason)
        self._tracker.finish(self._parent, "KILLED", reason)

    def _run(self, number: int) -> str:
        if number not in self._runs:
            params = self._study.study.get_trials(deepcopy=False)[number].params
            spec = self._night.trial(number, params)
            self._runs[number] = self._tracker.run(
                self._night.trial_key(number),
                spec.name,
                parent=self._parent,
                tags={"raymed.system": spec.recipe.name, "raymed.trial": str(number)},
                params={**spec.recipe.settings(), "train": dataclasses.asdict(spec.train), "seed": spec.seed},
            )
            self._tracker.reopen(self._runs[number])
        return self._runs[number]


def _is_metric(name: str, value: Any) -> bool:
    """Ours, not what keeps checkpoints, nor what Ray Tune adds to a result."""
    others = {"time_this_iter_s", "time_total_s", "time_since_restore", "timestamp", "pid", "iterations_since_restore"}
    others |= {"training_iteration", RANK}
    return isinstance(value, int | float) and not isinstance(value, bool) and name not in others


def deadline(hours: float, until: str) -> float:
    """Unix time at which a search that starts now ends: after `hours`, or at the next ``HH:MM`` (0 = never).

    Raises:
        UserError: `until` is not a time of day.
    """
    ends = [time.time() + hours * 3600] if hours else []
    if until:
        try:
            clock = datetime.strptime(until, "%H:%M").time()
        except ValueError as error:
            raise UserError(f"--until {until!r} is not a time of day such as 07:00") from error
        end = datetime.combine(datetime.now().date(), clock)
        ends.append((end if end > datetime.now() else end + timedelta(days=1)).timestamp())
    return min(ends, default=0.0)
