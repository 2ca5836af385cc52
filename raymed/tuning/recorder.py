"""What happens to a search's trials, written into MLflow, shown on the terminal, and told to whoever watches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from raymed import clock
from raymed.data.usage import Usage
from raymed.registry.candidate import FOLDER
from raymed.tracking.names import flatten
from raymed.tracking.outbox import Denied, Outbox, Refused, Unclear
from raymed.tracking.refusals import is_denied, is_permanent, is_unclear
from raymed.tracking.run_record import RunRecord
from raymed.tracking.tracker import DRAWN, GENERATION, USED, Status, Tracker
from raymed.training.fit import Resources
from raymed.training.loop import DESCRIPTION, PASSED_OVER
from raymed.training.reports import LOST
from raymed.training.spec import RunSpec
from raymed.training.step_log import STEPS, TOTAL_STEPS
from raymed.tuning.progress import Progress
from raymed.tuning.search import Search
from raymed.tuning.study import CHECKPOINT, REASON, Study
from raymed.tuning.trial_epochs import curve, report_times

log = logging.getLogger("raymed")

STATE = "raymed.state"
STATUS: dict[str, Status] = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}

Watch = Callable[[RunSpec, str, Mapping[str, Any]], None]
"""Told of a run, what happened to it (start, epoch, COMPLETE, PRUNED or FAIL), and what it reported."""


class Recorder:
    """One parent run in MLflow, with a child for each trial. MLflow may be away for a while: nothing waits for it.

    What MLflow shows follows from the study. What a lost process, or MLflow itself, has lost is written again at the start.
    """

    def __init__(
        self,
        search: Search,
        tracker: Tracker,
        parent: str,
        study: Study,
        progress: Progress,
        watch: Watch | None,
        each: Resources,
    ) -> None:
        """
        Args:
            each: what every trial takes.
        """
        self._search, self._tracker, self._parent = search, tracker, parent
        self._study, self._progress, self._watch = study, progress, watch
        self._each = each
        self._runs: dict[int, str] = {}
        self._digests: dict[str, str] = {}
        self._usages: dict[str, Usage] = {}
        self._warned: set[int] = set()  # trials of which damaged checkpoints were told
        minutes = search.template.train.storage_minutes
        server = f"the tracking server {tracker.uri}"
        self._outbox = Outbox(search.outbox, server, self._deliver, minutes, search.outbox_copy)
        self._outbox.put({"happened": "begin", "finished": [t.number for t in study.trials if t.state.is_finished()]})

    def observe(self, number: int, happened: str, result: Mapping[str, Any]) -> None:
        """Told by the search of a trial's start, epochs, lost workers and end."""
        if happened == STEPS:
            rows = {"trial": number, "happened": STEPS, "rows": result[STEPS], "at": int(clock.now() * 1000)}
            self._outbox.put(rows)
        if self._watch is not None and happened != LOST:
            self._watch(self._search.spec_of(self._study.trial(number)), happened, result)
        if happened in (LOST, STEPS):
            self._progress.show(number, happened, result)
            return
        entry = {"trial": number, "happened": happened, "reason": str(result.get("reason", ""))}
        if happened == "epoch":
            metrics = {name: value for name, value in result.items() if _is_metric(name, value)}
            within = f"{DESCRIPTION}/"  # Tune flattens what is reported
            facts = {name.removeprefix(within): value for name, value in result.items() if name.startswith(within)}
            epoch = int(result[self._study.counted])
            # MLflow takes it for the same however often it is written, also by a head that was cut off, at the same time
            at = report_times(self._study.trial(number)).get(epoch, int(clock.now() * 1000))
            entry |= {"epoch": epoch, "metrics": metrics, "facts": facts, "at": at}
            if PASSED_OVER in facts and number not in self._warned:
                self._warned.add(number)
                log.warning("trial %d went on from an earlier checkpoint: not whole are %s", number, facts[PASSED_OVER])
        self._outbox.put(entry)
        if happened != "start":
            self._progress.show(number, happened, result)

    def interrupt(self, reason: str = "interrupted; the same command goes on") -> None:
        """The search is stopped before its end: MLflow shows nothing as running."""
        self._outbox.put({"happened": "interrupt", "reason": reason})

    def settle(self, stopped: Mapping[int, str] | None = None) -> None:
        """The search is over: nothing stays RUNNING in the study or in MLflow, nor what Ray Tune lost sight of.

        Args:
            stopped: why trials were stopped that did not end by themselves, by their numbers.
        """
        for trial in self._study.trials:
            if trial.state == TrialState.RUNNING:
                state, reason = TrialState.FAIL, "Ray Tune ended without it"
                if trial.number in self._study.left_over:
                    state, reason = TrialState.PRUNED, "interrupted, and the budget was used up before it was its turn again"
                elif stopped and trial.number in stopped:
                    state, reason = TrialState.PRUNED, stopped[trial.number]
                self._study.tell(trial.number, state, reason)
                self.observe(trial.number, state.name, {"reason": reason})
        self._outbox.put({"happened": "end", "status": "FINISHED" if self._search.has_succeeded(self._study) else "FAILED"})

    def close(self) -> None:
        """Wait until MLflow has everything."""
        self._outbox.close()

    def _deliver(self, entry: dict[str, Any]) -> None:
        """Write an entry of the outbox into MLflow; twice leaves what once leaves.

        Raises:
            Refused: MLflow will never take it; its run was deleted, say.
            Denied: it does not take the credentials.
            Unclear: its database did not take it, for good or just now.
        """
        try:
            self._write(entry)
        except Exception as error:
            if _is_refusal(error):
                raise Refused(str(error)) from error
            self._runs.clear()  # what was found may be there no more
            if is_denied(error) or is_denied(error.__cause__):
                raise Denied(str(error)) from error
            if is_unclear(error) or is_unclear(error.__cause__):
                raise Unclear(str(error)) from error
            raise

    def _write(self, entry: Mapping[str, Any]) -> None:
        happened = entry["happened"]
        if happened == "begin":
            self._tracker.reopen(self._parent)
            self._catch_up(entry.get("finished", []))
        elif happened == "end":
            self._tracker.finish(self._parent, entry["status"])
        elif happened == "interrupt":
            reason = entry["reason"]
            running = [trial.number for trial in self._begun if trial.state == TrialState.RUNNING]
            stops = [partial(self._stop, number, reason) for number in running]
            _write_all([*stops, partial(self._tracker.finish, self._parent, "KILLED", reason)])
        else:
            self._deliver_of_trial(entry["trial"], happened, entry)

    @property
    def _begun(self) -> list[FrozenTrial]:
        """All trials but one that begins just now: it has no settings yet, by which its run is known."""
        return [trial for trial in self._study.trials if trial.params or not self._study.space]

    def _catch_up(self, finished: Collection[int]) -> None:
        """Write of trials that had ended earlier what MLflow lacks: a run, the objective of its epochs, its end."""
        known = self._tracker.children(self._parent)
        last = {self._search.trial_key(trial): trial for trial in self._begun}  # a run may be tried several times
        _write_all(
            partial(self._end, trial.number, trial.state.name, str(trial.user_attrs.get(REASON, "")))
            for key, trial in last.items()
            if trial.number in finished and not _is_up_to_date(known.get(key), trial, self._study.counted)
        )

    def _stop(self, number: int, reason: str) -> None:
        self._tracker.finish(self._run(number), "KILLED", reason)

    def _end(self, number: int, state: str, reason: str) -> None:
        run, trial = self._run(number), self._study.trial(number)
        ended, times = int((trial.datetime_complete or datetime.now()).timestamp() * 1000), report_times(trial)
        self._tracker.history.forget(run)
        for epoch, value in curve(trial).items():  # those that a database which was set back has lost
            metrics = {self._study.objective.name: value}
            self._tracker.history.log_validation(run, epoch, metrics, times.get(epoch, ended), self._study.counted)
        checkpoint = self._search.candidate(run, trial).tags() if CHECKPOINT in trial.user_attrs else {}
        self._tracker.tags(run, {STATE: state} | checkpoint)
        self._tracker.finish(run, STATUS[state], reason)

    def _deliver_of_trial(self, number: int, happened: str, entry: Mapping[str, Any]) -> None:
        run, trial = self._run(number), self._study.trial(number)
        if happened == "start":
            self._tracker.reopen(run)
        elif happened == STEPS:
            self._tracker.history.log_steps(run, entry["rows"], entry["at"])
        elif happened == "epoch":
            self._tracker.history.log_validation(run, entry["epoch"], entry["metrics"], entry.get("at"), self._study.counted)
            self._tracker.tags(run, {f"raymed.{name}": fact for name, fact in entry["facts"].items()})
            if CHECKPOINT in trial.user_attrs:
                self._tracker.tags(run, self._search.candidate(run, trial).tags())
        else:
            self._end(number, happened, entry["reason"])

    def _run(self, number: int) -> str:
        if number not in self._runs:
            trial = self._study.trial(number)
            spec = self._search.spec_of(trial)
            fold = "" if spec.fold is None else str(spec.fold)
            how = spec.train.how() | {"workers": self._each.workers, "threads": self._each.cpus}
            usage = self._used(spec)
            settings, paths = parameters(
                spec,
                {
                    **spec.recipe.settings(),
                    "train": spec.train.deciding(),
                    spec.sampling.option: vars(spec.sampling),
                    **({"start": {"digest": spec.start.digest, "new": spec.start.new}} if spec.start else {}),
                    "used": usage.flat(),
                    "seed": spec.seed,
                },
            )
            run = self._tracker.run(
                self._search.trial_key(trial),
                spec.name,
                parent=self._parent,
                tags={"raymed.system": spec.recipe.name, "raymed.trial": str(number), "raymed.fold": fold}
                | {GENERATION: self._study.generation, DRAWN: _digest(trial.params)}
                | {USED: str(usage), FOLDER: spec.folder.uri}
                | self._search.candidate("", trial).tags()
                | {f"raymed.{name}": str(value) for name, value in how.items()},
                params=settings,
                begun_with={"how": how, **paths, **({"start.uri": spec.start.uri} if spec.start else {})},
            )
            if spec.data not in self._digests:
                self._digests[spec.data] = spec.reach_data().digest
            context = f"training without fold {fold}" if fold else "training"
            self._tracker.input(run, self._search.name, self._digests[spec.data], spec.data, context)
            self._runs[number] = run
        return self._runs[number]

    def _used(self, spec: RunSpec) -> Usage:
        """Whom a run is trained and validated on, counted once for all trials that have it in common."""
        key = repr((spec.data, spec.fold, spec.sampling, spec.seed))
        if key not in self._usages:
            self._usages[key] = spec.usage(spec.reach_data())  # a storage that is away is tried again, as MLflow is
        return self._usages[key]


def parameters(spec: RunSpec, settings: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """A run's settings as MLflow compares them when it goes on: what pretrained weights hold; and where they lay first."""
    held, lying = spec.weights, dict(flatten(spec.recipe.settings()))
    compared = {name: text for name, text in flatten(settings) if name not in held}
    return compared | {f"weights.{name}": each for name, each in held.items()}, {name: lying[name] for name in held}


def _is_up_to_date(run: RunRecord | None, trial: FrozenTrial, counted: str) -> bool:
    """Whether MLflow's run of a finished trial shows its end and its last validation."""
    last = max(curve(trial), default=0)
    return run is not None and (run.tags.get(STATE), run.status, run.metrics.get(counted, 0)) == (
        trial.state.name,
        STATUS[trial.state.name],
        last,
    )


def _write_all(writes: Iterable[Callable[[], None]]) -> None:
    """One that MLflow refuses for good, since its run was deleted, say, keeps none of the others from being done.

    Raises:
        Exception: the last refusal, once all are done; anything else at once.
    """
    refusal: Exception | None = None
    for write in writes:
        try:
            write()
        except Exception as error:
            if not _is_refusal(error):
                raise
            refusal = error
    if refusal is not None:
        raise refusal


def _is_refusal(error: Exception) -> bool:
    return is_permanent(error) or is_permanent(error.__cause__)


def _digest(params: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=8).hexdigest()


def _is_metric(name: str, value: Any) -> bool:
    """Ours, not what keeps checkpoints, nor what Ray Tune adds to a result."""
    others = {"time_this_iter_s", "time_total_s", "time_since_restore", "timestamp", "pid", "iterations_since_restore"}
    others |= {"training_iteration", TOTAL_STEPS}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and name not in others and not name.startswith("config/")
