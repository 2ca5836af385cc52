"""The study: one durable record of a search.

The truth about a search is an Optuna study on disk: what was suggested, every value of its objective by epoch, the rungs of
successive halving, how each trial ended and why. Suggestions come from Optuna's TPE (seeded anew for each trial, so they do
not depend on what a lost process had drawn), and early stopping is Optuna's asynchronous successive halving (ASHA, Li et al.
2020), which keeps its rungs in the study. Ray Tune runs the trials; its own state files decide nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raymed import clock
from raymed.compat.optuna import queued_params, rung_key, trial_of
from raymed.errors import UserError
from raymed.language import say
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.training.loop import MODEL
from raymed.tuning.budget import Budget
from raymed.tuning.draw import DRAWN_AT_RANDOM, distribution, draw, suggest
from raymed.tuning.journal import Journal
from raymed.tuning.settings import Halving
from raymed.tuning.space import Space, Value, current_name
from raymed.tuning.trial_epochs import CURVE, DECIDED, REPORTED, decisions

log = logging.getLogger("raymed")
optuna.logging.set_verbosity(optuna.logging.WARNING)

REASON, CHECKPOINT, BEST_POINT, SECONDS = "reason", "checkpoint", "best_epoch", "seconds"
BUDGET, SPENT, PHASE = "budget", "spent", "phase"  # of the whole search
SEEN_CHAMPION, REGISTERED = "seen_champion", "registered"  # also of the whole search
WARM_UP = "warm_up"  # also
SEARCHING, JUDGING, REFITTING, DONE = "searching", "judging", "refitting", "done"
BEGUN_WITH = {  # what a search stays with, and how that is done
    "weights": ("pretrained weights", "Put them back where they were"),
    "data": ("data", "Prepare those once more"),
}


class Study:
    """A durable Optuna study of the objective: val_loss, or another metric that the system declares."""

    def __init__(
        self,
        journal: Journal,
        name: str,
        space: Space,
        first: Sequence[Mapping[str, Value]],
        halving: Halving,
        seed: int,
        objective: Metric = VAL_LOSS,
        counted: str = "epoch",
        begun_with: Mapping[str, Mapping[str, str]] | None = None,
        warm_up: int = 0,
    ) -> None:
        """Open or create the study in a journal.

        Args:
            first: settings of the first trials, before anything is drawn.
            halving: its first rung as validations are counted.
            counted: by what they are, see `TrainSettings`; where this module says epoch, it may be a step.
            begun_with: fingerprints of the `data` and `weights` that its runs begin with, by what names them.
            warm_up: the epoch, or step, before which no trial is stopped. A search that goes on keeps the one it began with.

        Raises:
            UserError: the journal holds something else, or a search of another space or objective, of other data or weights.
        """
        self._journal = journal
        self.objective, self.counted = objective, counted
        self._direction = StudyDirection.MINIMIZE if objective.direction == "min" else StudyDirection.MAXIMIZE
        self.seed, self.space = seed, {name: distribution(dimension) for name, dimension in space.items()}
        try:
            storage = optuna.storages.JournalStorage(journal)
            self.study = optuna.create_study(
                study_name=name, storage=storage, direction=self._direction, load_if_exists=True
            )
        except (ValueError, KeyError) as error:
            raise UserError(
                f"the record of the search {name!r} is of something else ({error}). Use another --name, or --resume never"
            ) from error
        described = {current_name(name): repr(each) for name, each in self.space.items()}
        recorded = self.study.user_attrs
        # A record of before there was a choice names no objective.
        aim = recorded.get("objective", VAL_LOSS.name if "space" in recorded else objective.name)
        earlier = {current_name(name): each for name, each in recorded.get("space", described).items()}
        if earlier != described:
            raise UserError(f"the search {name!r} was started with another space. Use another --name, or --resume never")
        if aim != objective.name:
            raise UserError(
                f"the search {name!r} compares its trials by {aim}, not by {objective.name}. Use another --name, or "
                "--resume never"
            )
        for kind, now in (begun_with or {}).items():
            _require_same(name, kind, recorded.get(kind, {}), now)
        # A record of before rungs lay behind the warm-up names none.
        self.warm_up: int = recorded.get(WARM_UP, 0 if "space" in recorded else warm_up)
        self.halving = halving.after(self.warm_up)
        self.study.pruner = optuna.pruners.NopPruner()
        if self.halving.first_rung:
            self.study.pruner = optuna.pruners.SuccessiveHalvingPruner(self.halving.first_rung, self.halving.reduction)
        begun: dict[str, Any] = {kind: recorded.get(kind, {}) | dict(now) for kind, now in (begun_with or {}).items()}
        begun |= {"space": described, "objective": objective.name, WARM_UP: self.warm_up}
        with self.together():
            for key, value in begun.items():
                if recorded.get(key) != value:
                    self.study.set_user_attr(key, value)
        if not self.study.get_trials(deepcopy=False):
            with self.together():
                for params in first:
                    self.enqueue(params)
        self.mistake = ""  # what every trial would meet: something that the user can mend
        self._in_flight = [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]
        self._asked: dict[int, optuna.Trial] = {}
        for number in self._in_flight:
            self._settings(number)  # of one put in line, where a process was killed between its two entries
        self._spent_before, self._since = float(self.study.user_attrs.get(SPENT, 0.0)), clock.seconds()

    @property
    def generation(self) -> str:
        """Tells this search from another one under the same name, before or after it."""
        return self._journal.generation

    def together(self) -> AbstractContextManager[None]:
        """What is recorded within is written at its end, at once."""
        return self._journal.together()

    def at_rest(self) -> AbstractContextManager[None]:
        """While entered by another thread, what was decided is recorded, but for what a write has given up."""
        return self._journal.at_rest()

    def close(self) -> None:
        """Wait for the record's copy."""
        self._journal.close()

    @property
    def phase(self) -> str:
        """What the search is at. One that was searched is not searched again by the same command; see `begin`."""
        return str(self.study.user_attrs.get(PHASE, SEARCHING))

    def enter(self, phase: str) -> None:
        """Record what the search is at from now on."""
        if self.phase != phase:
            self.study.set_user_attr(PHASE, phase)

    def begin(self, budget: Budget) -> Budget:
        """The budget in force: what earlier processes left of it. A larger one opens a search again that had ended."""
        if BUDGET in self.study.user_attrs:
            earlier = Budget.from_dict(self.study.user_attrs[BUDGET])
            budget = budget.kept(earlier)
            if self.phase != SEARCHING and not budget.exceeds(earlier):
                return earlier.begun(self._spent_before)
        with self.together():
            if self.phase != SEARCHING:
                self.note_champion(None)
                self.note_registered(None)
            self.enter(SEARCHING)
            self.study.set_user_attr(BUDGET, budget.to_dict())
        self._since = clock.seconds()
        return budget.begun(self._spent_before)

    @property
    def champion(self) -> str | None:
        """The version that was champion when the search began: it makes its winner champion only in place of that one, or
        of its own, see `registered`. As `seen_version` gives it; None where nobody has looked."""
        version: str | None = self.study.user_attrs.get(SEEN_CHAMPION)
        return version

    def note_champion(self, version: str | None) -> None:
        """Record the version that is champion, as `seen_version` gives it; see `champion`."""
        self.study.set_user_attr(SEEN_CHAMPION, version)

    @property
    def registered(self) -> str | None:
        """The version of the search's winner, as `known_by` gives it, once it may have become champion; else None."""
        version: str | None = self.study.user_attrs.get(REGISTERED)
        return version

    def note_registered(self, version: str | None) -> None:
        """Record the version of the search's winner; see `registered`."""
        self.study.set_user_attr(REGISTERED, version)

    @property
    def spent(self) -> float:
        """Seconds of searching so far, over all processes, up to the last report of those that were killed."""
        return self._spent_before + clock.seconds() - self._since

    @property
    def trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    @property
    def waiting(self) -> list[Mapping[str, Value]]:
        """Settings of the trials that were put in line and have not begun."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return [queued_params(trial) for trial in trials]

    def enqueue(self, params: Mapping[str, Value]) -> None:
        """Put a trial with these settings in line, before anything is drawn."""
        self.study.enqueue_trial(dict(params))

    def take_up(self, number: int) -> None:
        """A trial lost its processes: it goes on before anything else begins."""
        self._in_flight.insert(0, number)

    @property
    def left_over(self) -> list[int]:
        """Trials that an earlier process left unfinished and that have not gone on."""
        return list(self._in_flight)

    @property
    def noun(self) -> str:
        """What a person calls that by which validations are counted."""
        return self.counted.removeprefix("global_")

    def best_point(self, trial: FrozenTrial) -> str:
        """When a trial was best: epoch 3, or step 1500."""
        return f"{say(self.noun)} {trial.user_attrs[BEST_POINT]}"

    @property
    def trained(self) -> int:
        """Epochs, or steps, trained so far, over all trials."""
        return sum(trial.last_step or 0 for trial in self.trials)

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial of those that left a checkpoint, however it ended."""
        able = [trial for trial in self.trials if trial.intermediate_values and CHECKPOINT in trial.user_attrs]
        return min(able, key=self.rank, default=None)

    def best_value(self, trial: FrozenTrial) -> float:
        """A trial's best value of the objective; infinitely bad when it reported none."""
        return self.objective.best(value for value in trial.intermediate_values.values() if math.isfinite(value))

    def rank(self, trial: FrozenTrial) -> float:
        """What trials are sorted by, the best first."""
        return self.best_value(trial) if self.objective.direction == "min" else -self.best_value(trial)

    @property
    def is_guided(self) -> bool:
        """Whether the next trial's settings depend on what others have reported."""
        return not self._in_flight and not self.waiting and len(self.trials) >= DRAWN_AT_RANDOM

    def ask(self, budget: Budget) -> tuple[int, dict[str, Value]] | None:
        """Number and settings of the next trial: one a lost process left unfinished, else a new one; None at the end."""
        if budget.time_is_over or self.mistake:
            return None
        if self._in_flight:
            number = self._in_flight.pop(0)
        elif len(self.trials) >= budget.trials or (budget.epochs and self.trained >= budget.epochs):
            return None
        elif self.waiting:
            with self.together():
                number = self.study.ask().number
                self._settings(number)
        else:
            number = len(self.trials)
            drawn = draw(self.trials, self.space, self._direction, self.seed * 100_003 + number)
            self.study.add_trial(drawn)  # one entry of the record: a trial is there with all its settings
        return number, self._settings(number)

    def _settings(self, number: int) -> dict[str, Value]:
        """A trial's settings: those that it was put in line with are recorded now."""
        there = {current_name(name) for name in self.trial(number).params}
        for name, drawn_from in self.space.items():
            if name not in there:
                suggest(self._trial(number), name, drawn_from)
        return dict(self.trial(number).params)

    def decided(self, number: int, epoch: int) -> str | None:
        """Why a trial was stopped after an epoch; "" where it went on, and None where nothing was decided yet.

        A decision is made once: the same epoch reported again, by a run that goes on, would meet other trials' later values.
        """
        trial = self.trial(number)
        if trial.state.is_finished():
            return str(trial.user_attrs.get(REASON) or "the trial has ended")
        return decisions(trial).get(epoch)

    def decide(self, number: int, epoch: int, reason: str) -> None:
        """Keep what was decided after an epoch; see `decided`."""
        self._trial(number).set_user_attr(f"{DECIDED}/{epoch}", reason)

    def report(self, number: int, epoch: int, result: Mapping[str, Any]) -> bool:
        """Record an epoch's value of the objective, and the best yet; True when successive halving says to stop the trial.

        A resumed run reports its last epoch again, in case the search was lost before it had decided.
        """
        trial = self._trial(number)
        if epoch in self.trial(number).intermediate_values:
            self.locate(number, result)
            return self._decided_to_stop(self.trial(number), epoch)
        trial.set_user_attr(f"{CURVE}/{epoch}", float(result[self.objective.name]))
        trial.set_user_attr(f"{REPORTED}/{epoch}", int(1000 * clock.now()))
        seconds = float(result.get("seconds", 0.0)) + float(result.get("pause_seconds", 0.0))
        trial.set_user_attr(SECONDS, trial.user_attrs.get(SECONDS, 0.0) + seconds)
        self.locate(number, result)
        self.study.set_user_attr(SPENT, self.spent)
        trial.report(float(result[f"best_{self.objective.name}"]), epoch)  # last: an epoch that is there is recorded in full
        return trial.should_prune()

    def locate(self, number: int, result: Mapping[str, Any]) -> None:
        """Record where a trial's best model lies. One that lost it, and trained that epoch again, has it elsewhere."""
        trial = self.trial(number)
        if MODEL not in result or trial.state.is_finished():
            return
        # the checkpoint last, and both compared: a process may be killed between the two
        place = {BEST_POINT: int(result[f"best_{self.counted}"]), CHECKPOINT: result[MODEL]}
        if any(trial.user_attrs.get(name) != value for name, value in place.items()):
            for name, value in place.items():
                self._trial(number).set_user_attr(name, value)

    def _decided_to_stop(self, trial: FrozenTrial, epoch: int) -> bool:
        """What successive halving decided, or would have, after an epoch that is recorded."""
        rung = 0
        while 0 < self.halving.first_rung * self.halving.reduction**rung < epoch:
            rung += 1
        key = rung_key(rung)
        if self.halving.first_rung * self.halving.reduction**rung != epoch:
            return False
        if key not in trial.system_attrs:
            return self._trial(trial.number).should_prune()
        values = [each.system_attrs[key] for each in self.trials if key in each.system_attrs]
        values.sort(reverse=self.objective.direction == "max")
        last = values[max(0, len(values) // self.halving.reduction - 1)]  # of those that go on
        return self.objective.is_better(last, trial.system_attrs[key])

    def tell(self, number: int, state: TrialState, reason: str = "") -> None:
        """End a trial, once. Its value is its best one of the objective."""
        trial = self.trial(number)
        if trial.state.is_finished():
            return
        if reason:
            self._trial(number).set_user_attr(REASON, reason)
        value = self.best_value(trial)
        if state == TrialState.COMPLETE and not math.isfinite(value):
            state = TrialState.FAIL
        self.study.tell(number, value if state == TrialState.COMPLETE else None, state)

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._asked:
            self._asked[number] = trial_of(self.study, self.trial(number))
        return self._asked[number]


def _require_same(search: str, kind: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises: UserError: what the record names is another now. Records of before a kind was noted name nothing of it."""
    changed = [name for name, held in now.items() if before.get(name, held) != held]
    other = [f"{name} was {before[name]}, and is {now[name]} now" for name in changed]
    if other:
        what, mend = BEGUN_WITH[kind]
        raise UserError(
            f"the search {search!r} began with other {what}: {'; '.join(other).strip()}. {mend}, or use another --name, or "
            "--resume never"
        )
