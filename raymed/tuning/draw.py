"""What a new trial tries: drawn by Optuna's TPE (Bergstra et al. 2011) from the trials before it."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raymed.tuning.space import Dimension

DRAWN_AT_RANDOM = 8  # trials, before TPE learns from those that have reported


def draw(
    trials: Sequence[FrozenTrial], space: dict[str, BaseDistribution], direction: StudyDirection, seed: int
) -> FrozenTrial:
    """A new trial, by TPE over all settings at once.

    Args:
        trials: those before it, whatever their states.
        seed: of this trial alone: its draws do not depend on what a lost process had drawn.
    """
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=DRAWN_AT_RANDOM)
    draft = optuna.create_study(sampler=sampler, direction=direction)
    draft.add_trials(trials)
    params = draft.ask(space).params
    return optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=space)


def distribution(dimension: Dimension) -> BaseDistribution:
    """What Optuna draws a setting from."""
    if dimension.choices:
        return CategoricalDistribution(list(dimension.choices))
    if dimension.is_whole:
        return IntDistribution(int(dimension.low or 0), int(dimension.high or 0), log=dimension.log)
    return FloatDistribution(float(dimension.low or 0), float(dimension.high or 0), log=dimension.log)


def suggest(trial: optuna.Trial, name: str, drawn_from: BaseDistribution) -> None:
    """Draw a setting of a trial, or take the one that it was put in line with."""
    if isinstance(drawn_from, CategoricalDistribution):
        trial.suggest_categorical(name, drawn_from.choices)
    elif isinstance(drawn_from, IntDistribution):
        trial.suggest_int(name, drawn_from.low, drawn_from.high, log=drawn_from.log)
    elif isinstance(drawn_from, FloatDistribution):
        trial.suggest_float(name, drawn_from.low, drawn_from.high, log=drawn_from.log)
