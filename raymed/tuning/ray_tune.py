"""The two faces that Ray Tune sees of a study: what to try next, and whether a trial goes on.

Ray Tune runs the trials; what it is told to do, and what becomes of a trial, is read from the study and written there.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray.actor import ActorHandle
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymed.job.library_log import keep_traceback
from raymed.training.fit import RESTARTS
from raymed.training.loop import CAUSE, COMMON, FAILED, HISTORY
from raymed.training.reports import LOST
from raymed.training.spec import RunSpec
from raymed.training.stall import STALLED
from raymed.training.step_log import STEPS, TOTAL_STEPS
from raymed.tuning.interrupt import Interrupt
from raymed.tuning.machine_wait import MachineWait
from raymed.tuning.space import Value
from raymed.tuning.storage_watch import StorageWatch
from raymed.tuning.study import Study
from raymed.tuning.timetable import Timetable

log = logging.getLogger("raymed")

Observer = Callable[[int, str, Mapping[str, Any]], None]
"""Told of a trial by its number: what happened to it (start, steps, epoch, lost, its end), and what it reported."""

LOW_MEMORY = "running low on memory"  # in what Ray says of a process that it has ended for that
LOST_DRIVER = re.compile(rf"^(ray\.exceptions\.Actor\w+Error: )?The actor |{LOW_MEMORY}", re.MULTILINE)


class StudySearcher(Searcher):
    """Gives Ray Tune the study's next trial. Unlike Ray's own OptunaSearch it leaves ending a trial to `StudyScheduler`,
    which knows whether it was stopped, failed or finished."""

    def __init__(
        self,
        study: Study,
        timetable: Timetable,
        spec: Callable[[int, Mapping[str, Value]], RunSpec],
        interrupt: Interrupt,
        storage: StorageWatch,
        machines: MachineWait,
        room: Callable[[], int],
    ) -> None:
        """`room` tells how many trials the machines that are there hold."""
        super().__init__()  # without a metric: not every report has one (a checkpoint within an epoch, a failure)
        self._study, self._timetable, self._spec, self._interrupt, self._storage = study, timetable, spec, interrupt, storage
        self._machines, self._room = machines, room
        self._under_way: set[str] = set()  # as Ray Tune calls them

    def suggest(self, trial_id: str) -> Any:
        if self._storage.is_away and not self._interrupt.told:
            return None  # later
        if self._study.is_guided and len(self._under_way) > self._room():
            return None  # later, when it can be drawn from more results: until a machine comes it would only wait
        is_over = self._interrupt.told or self._timetable.is_over(self._study)
        if asked := None if is_over else self._study.ask(self._timetable.budget):
            self._under_way.add(trial_id)
            self._machines.begins(asked[0])
            return {"number": asked[0], "spec": self._spec(*asked)}
        if self._under_way and not is_over and not self._study.mistake:
            return None  # later: one that loses its driver is taken up again, and Ray Tune never asks after the end
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """It is under way no more; for the rest, see the class."""
        self._under_way.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing either: Ray Tune pickles its parts into its own state file, which we never read."""
        return {}


class StudyScheduler(FIFOScheduler):
    """Writes what trials report into the study, and tells those to stop that successive halving or the budget ends."""

    def __init__(
        self,
        study: Study,
        timetable: Timetable,
        stop_decisions: ActorHandle,
        observe: Observer,
        interrupt: Interrupt,
        storage: StorageWatch,
        machines: MachineWait,
        alike: bool = True,
    ) -> None:
        """Args: alike: trials share all settings but those that are drawn, so what is wrong with the first is wrong with
        all; listed runs have settings of their own, and the others go on."""
        super().__init__()
        self._alike = alike
        self._study, self._timetable, self._verdicts, self._observe = study, timetable, stop_decisions, observe
        self._interrupt, self._storage, self._machines = interrupt, storage, machines
        self._lost: Counter[tuple[int, int]] = Counter()  # drivers, by trial and epoch

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for `StudySearcher`."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._observe(trial.config["number"], "start", {})

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Always to go on, as far as Ray Tune is concerned: a trial that is told to stop ends by itself."""
        (self._machines.begins if LOST in result else self._machines.reports)(trial.config["number"])
        if result.get(STEPS):
            self._observe(trial.config["number"], STEPS, result)
        if CAUSE in result:
            keep_traceback(result[CAUSE])  # for jobs/doctor.py --bundle: the message is for a person
        is_first = self._alike and trial.config["number"] == 0 and not self._study.trained
        if COMMON in result or ("mistake" in result and is_first):
            self._study.mistake = str(result[FAILED])  # it stays RUNNING: the same command goes on once that is mended
        elif FAILED in result:
            self._end(trial, TrialState.FAIL, str(result[FAILED]))
        elif "finished" in result:  # and not only steps, or a checkpoint between two validations
            self._judge(trial, int(result[self._study.counted]), result)
        elif LOST in result:
            self._observe(trial.config["number"], LOST, result)
        return TrialScheduler.CONTINUE

    def _judge(self, trial: TuneTrial, epoch: int, result: dict[str, Any]) -> None:
        number = trial.config["number"]
        self._fill_in(number, result)
        reason = self._study.decided(number, epoch)
        if reason is None:
            reason, budget = "", self._timetable.budget
            with self._study.together():
                if self._study.report(number, epoch, result):
                    reason = f"stopped by successive halving after {self._study.noun} {epoch}"
                elif self._timetable.is_over(self._study, number) or 0 < budget.epochs <= self._study.trained:
                    reason = f"the budget was used up after {self._study.noun} {epoch}"
                self._study.decide(number, epoch, reason)
        else:
            self._study.locate(number, result)
        self._observe(number, "epoch", result)
        if result["finished"]:
            self._end(trial, TrialState.COMPLETE)
        elif reason:
            self._end(trial, TrialState.PRUNED, reason)
        self._verdicts.give.remote(trial.config["spec"].name, epoch, bool(reason))

    def _fill_in(self, number: int, result: dict[str, Any]) -> None:
        """Record what the study lacks of the validations before the one that a run which goes on tells of: a head was lost
        before they were copied, or a file was torn. After each the run went on, so that is what was decided. What an earlier
        try of the same run told of is that one's."""
        study, trial = self._study, self._study.trial(number)
        if not result.get(HISTORY) or trial.state.is_finished():
            return
        drawn = self._alike and study.space
        tries = [trial] if drawn else [each for each in study.trials if each.params == trial.params]
        known = {epoch for each in tries for epoch in each.intermediate_values}
        whole = (each for each in result[HISTORY] if f"best_{study.objective.name}" in each)  # another system's may say less
        lacking = {int(each[study.counted]): each for each in whole if int(each[study.counted]) not in known}
        with study.together():
            for epoch, earlier in lacking.items():
                study.report(number, epoch, earlier)
                study.decide(number, epoch, "")
        for earlier in lacking.values():
            self._observe(number, "epoch", {TOTAL_STEPS: result.get(TOTAL_STEPS, 0), **earlier})

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        number = trial.config["number"]
        self._machines.ends(number)
        if self._stays or self._study.trial(number).state.is_finished():
            return
        place = number, self._study.trial(number).last_step or 0
        self._lost[place] += _lost_its_driver(trial)
        if self._storage.is_away or 0 < self._lost[place] <= RESTARTS:
            log.warning("trial %d lost its process after %s %d: it is taken up again", number, self._study.noun, place[1])
            self._study.take_up(number)
            return
        # Tune has written down what it was told, but not yet copied it to the storage, where trial.get_error() looks.
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        if self._lost[place]:
            stalled = _where_it_stood(trial.config["spec"])
            why = ": Ray ended it, its machine being low on memory" if LOW_MEMORY in text else ""
            self._end(trial, TrialState.FAIL, stalled or f"its process was lost {1 + RESTARTS} times{why}")
            return
        keep_traceback(text)
        self._end(trial, TrialState.FAIL, _last_line(text))

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        self._machines.ends(trial.config["number"])
        if not self._stays:
            self._end(trial, TrialState.FAIL, "ended without a result")  # only where nothing ended it before

    @property
    def _stays(self) -> bool:
        """Whether a trial that ends stays RUNNING in the study, so that the same command goes on with it."""
        return self._interrupt.told or bool(self._study.mistake)

    def _end(self, trial: TuneTrial, state: TrialState, reason: str = "") -> None:
        number = trial.config["number"]
        if self._study.trials and not self._study.trial(number).state.is_finished():
            self._study.tell(number, state, reason)
            self._observe(number, state.name, {"reason": reason})


def _lost_its_driver(trial: TuneTrial) -> bool:
    """Whether the process died that waits for a trial's workers, or its machine, by what Ray Tune has written down."""
    return trial.error_file is not None and LOST_DRIVER.search(Path(trial.error_file).read_text()) is not None


def _where_it_stood(spec: RunSpec) -> str:
    """What the guard of a run that hung wrote down; empty where it did not hang, or its storage does not answer."""
    with contextlib.suppress(OSError):
        return spec.folder.read(STALLED).decode() if spec.folder.exists(STALLED) else ""
    return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1][:500] if lines else text[:500]
