"""What must fit into a search's time: searching, the leader's way to the end of its schedule, judging, training again.

How long all that takes is told by the epochs that trials have trained so far; before the first one none is set aside. An
epoch that would not end in time is not begun: hours of a large network's training would go beyond the morning.
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import TrialState

from raymed.recipes.recipe import SlowlyJudged
from raymed.tuning import room
from raymed.tuning.budget import Budget
from raymed.tuning.refit import SPLITS, cost_of_epochs
from raymed.tuning.search import Search
from raymed.tuning.study import SECONDS, Study

GRACE = 0.15  # most of the time that a leader may take, while nothing else trains any more, to end its schedule
REPORTING = 60.0  # seconds to register the winner and write the report


@dataclass(frozen=True)
class Timetable:
    """When trials stop.

    Attributes:
        budget: the time, and what follows the search within it.
        seconds: left when the search, or the process that goes on with it, begins; infinity without a limit.
        epochs: most epochs of a trial; steps, here and below, where validations are counted by steps.
        judging: how long judging takes, in epochs of a trial.
        refitting: how long an epoch of the refit takes, in epochs of a trial; 0 where there is none.
        every: how many epochs lie between two validations: 1, or steps.
    """

    budget: Budget
    seconds: float
    epochs: int
    judging: float = 0.0
    refitting: float = 0.0
    every: int = 1

    @classmethod
    def of(cls, search: Search, budget: Budget) -> Timetable:
        """The timetable of a search that starts now."""
        spec = search.template
        if not (budget.end and search.settings.space):
            return cls(budget, budget.seconds_left, spec.train.epochs, every=spec.train.validate_steps or 1)
        prepared, workers = spec.open_data(), room.trial_resources(search)[0].workers
        validation = len(spec.rows(prepared, "val"))
        plan, every = spec.plan(prepared, 0), spec.train.validate_steps
        # a forward pass is a third of a step
        epoch = plan.rows / len(plan.batches) + validation / 3 / every if every else plan.rows + validation / 3
        looked_at = validation + len(spec.rows(prepared, "test"))
        recipe = spec.recipe
        judged = (recipe.judging_passes(looked_at) if isinstance(recipe, SlowlyJudged) else looked_at) / 3
        refitting = cost_of_epochs(search, spec, SPLITS[budget.refit]) if budget.refit in SPLITS else 0.0
        return cls(budget, budget.seconds_left, spec.length(prepared), judged * workers / epoch, refitting, every or 1)

    def is_over(self, study: Study, number: int | None = None) -> bool:
        """Whether no trial is to begin any more, or the trial of that number is to stop."""
        leads, until_validated = study.best is not None and study.best.number == number, self.every * _epoch(study)
        needed = until_validated if leads else max(until_validated, self._grace(study))
        return self.budget.seconds_left <= self._afterwards(study) + needed

    def _afterwards(self, study: Study) -> float:
        """Seconds that judging and training again will take."""
        if study.best is None or not self.judging:
            return 0.0
        refit = self.refitting * (study.best.last_step or 0)
        return REPORTING + _epoch(study) * (self.judging + refit)

    def _grace(self, study: Study) -> float:
        """Seconds that the leader needs to end its schedule; 0 where it has, or would need too long."""
        leader = study.best
        if leader is None or leader.state != TrialState.RUNNING:
            return 0.0
        needed = _epoch(study) * (self.epochs - (leader.last_step or 0))
        return needed if needed <= GRACE * self.seconds else 0.0


def _epoch(study: Study) -> float:
    """Seconds of an epoch, the mean over all that were trained."""
    return sum(trial.user_attrs.get(SECONDS, 0.0) for trial in study.trials) / max(1, study.trained)
