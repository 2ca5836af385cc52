"""What the record has of a trial by its epochs, or steps: an entry of its own for each."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial

CURVE = "curve"  # the value of the objective
DECIDED = "decided"  # why the trial was stopped after an epoch, or nothing where it went on
REPORTED = "reported"  # when an epoch was told of


def curve(trial: FrozenTrial) -> dict[int, float]:
    """A trial's value of the objective by epoch, in their order; `intermediate_values` has the best so far."""
    return _by_epoch(trial, CURVE)


def decisions(trial: FrozenTrial) -> dict[int, str]:
    """What was decided after each epoch of a trial; see `Study.decided`."""
    return _by_epoch(trial, DECIDED)


def report_times(trial: FrozenTrial) -> dict[int, int]:
    """When the search was told of each epoch of a trial, in milliseconds; none of what an earlier raymed recorded."""
    return _by_epoch(trial, REPORTED)


def _by_epoch(trial: FrozenTrial, name: str) -> dict[int, Any]:
    """An entry of the record for each epoch; an earlier raymed wrote all of them anew with every one."""
    values = {int(epoch): value for epoch, value in trial.user_attrs.get(name, {}).items()}
    begins = f"{name}/"
    own = {int(key.removeprefix(begins)): value for key, value in trial.user_attrs.items() if key.startswith(begins)}
    return dict(sorted((values | own).items()))
