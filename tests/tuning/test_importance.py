"""A setting is called important only where chance would not make one look so."""

import warnings

import numpy as np
import optuna
from optuna.distributions import FloatDistribution

from raymed.tuning.importance import importance

NAMES = ("lr", "weight_decay", "dropout", "width")
SPACE = {name: FloatDistribution(0.0, 1.0) for name in NAMES}


def study_of(settings: np.ndarray, values: np.ndarray) -> optuna.Study:
    study = optuna.create_study()
    for row, value in zip(settings.tolist(), values.tolist(), strict=True):
        params = dict(zip(NAMES, row, strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=SPACE, value=value))
    return study


def test_of_trials_that_are_pure_noise_no_setting_is_called_important() -> None:
    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = [bool(importance(study_of(generator.random((20, 4)), generator.random(20)))) for _ in range(4)]
    assert sum(shown) <= 1


def test_a_setting_that_decides_is_found() -> None:
    settings = np.random.default_rng(1).random((40, 4))
    shares = importance(study_of(settings, (settings[:, 0] - 0.3) ** 2))
    assert max(shares, key=lambda name: shares[name]) == "lr"


def test_three_trials_say_nothing() -> None:
    assert importance(study_of(np.random.default_rng(2).random((3, 4)), np.arange(3.0))) is None
