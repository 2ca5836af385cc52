"""What a new trial tries follows from its own seed and the trials before it."""

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from raymed.tuning.draw import DRAWN_AT_RANDOM, distribution, draw
from raymed.tuning.space import Dimension

SPACE = {
    "x": distribution(Dimension(0.0, 1.0)),
    "n": distribution(Dimension(1, 64)),
    "y": distribution(Dimension(choices=("a", "b"))),
}


def ended(params, value):
    return optuna.trial.create_trial(params=params, distributions=SPACE, value=value)


def drawn(trials, seed, direction=StudyDirection.MINIMIZE):
    return draw(trials, SPACE, direction, seed).params


def test_the_same_seed_draws_the_same_and_another_seed_something_else():
    assert drawn([], 7) == drawn([], 7)
    assert drawn([], 7) != drawn([], 8)


def test_a_new_trial_runs_and_has_a_value_of_each_setting_within_its_range():
    trial = draw([], SPACE, StudyDirection.MINIMIZE, 7)
    assert trial.state == TrialState.RUNNING and trial.params.keys() == SPACE.keys()
    assert 0 <= trial.params["x"] <= 1 and trial.params["n"] in range(1, 65) and trial.params["y"] in "ab"


def test_enough_trials_are_learnt_from_and_the_direction_counts():
    trials = [ended(drawn([], seed), 0.0) for seed in range(40)]
    trials = [ended(trial.params, trial.params["x"]) for trial in trials]
    assert drawn(trials[: DRAWN_AT_RANDOM - 1], 7) == drawn([], 7), "too few are not learnt from"
    low, high = (
        sum(drawn(trials, seed, direction)["x"] for seed in range(20)) / 20
        for direction in (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)
    )
    assert low < 0.3 and high > 0.7


def test_whole_numbers_are_drawn_from_their_range_and_as_whole_numbers():
    drawn_from = distribution(Dimension(2, 9, log=True))
    assert isinstance(drawn_from, IntDistribution)
    assert (drawn_from.low, drawn_from.high, drawn_from.log) == (2, 9, True)
    assert isinstance(distribution(Dimension(0.1, 0.9)), FloatDistribution)
    assert isinstance(distribution(Dimension(choices=("a", "b"))), CategoricalDistribution)
