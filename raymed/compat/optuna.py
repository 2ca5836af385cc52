"""Optuna's private parts."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial

__all__ = ["SEEN", "JournalOperation", "queued_params", "rung_key", "trial_of"]

SEEN = "5.0.0"

# `JournalOperation` (optuna/storages/journal/_storage.py) names the entries of a journal: ours says of each what it is, and
# a backend of one's own, which is public, gets them as plain dictionaries with that number.


def trial_of(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A trial that another process asked for, to be reported on: `Study.ask` gives new ones only, and no public call gives
    the id that `optuna.Trial` takes (optuna/trial/_frozen.py, `_trial_id`)."""
    return optuna.Trial(study, trial._trial_id)


def queued_params(trial: FrozenTrial) -> dict[str, Any]:
    """The settings that `Study.enqueue_trial` put in line: they are nowhere else until the trial begins
    (optuna/study/study.py, `enqueue_trial`)."""
    params: dict[str, Any] = trial.system_attrs["fixed_params"]
    return params


def rung_key(rung: int) -> str:
    """Under which successive halving notes a trial's value at a rung (optuna/pruners/_successive_halving.py): a decision
    that was lost with its process is made again from what it saw."""
    return f"completed_rung_{rung}"
