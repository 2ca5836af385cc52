"""Which settings mattered in a search, where that can be told from chance."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

FEWEST = 4  # finished trials: the best tenth of fewer is one trial that is compared with hardly anything
SHUFFLES = 100


def importance(study: optuna.Study, seed: int = 0) -> dict[str, float] | None:
    """Share of each setting in what tells the best tenth of the finished trials from the others (PED-ANOVA, Watanabe et al.
    2023, arXiv:2304.10255).

    Where figures are pure noise, one of six settings 'explains' 0.6 of 20 trials. So the shares are given only where the
    largest is above the 95th percentile of the largest after the trials' figures were shuffled (a permutation test on the
    maximum, Westfall & Young 1993); empty otherwise. None where there are too few trials or settings to ask.
    """
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(trials) < FEWEST or len({name for trial in trials for name in trial.params}) < 2:
        return None
    shares = _shares(study.direction, trials, np.array([trial.value for trial in trials]))
    generator, values = np.random.default_rng(seed), np.array([trial.value for trial in trials])
    chance = [max(_shares(study.direction, trials, generator.permutation(values)).values()) for _ in range(SHUFFLES)]
    return shares if max(shares.values()) > np.quantile(chance, 0.95) else {}


def _shares(
    direction: optuna.study.StudyDirection, trials: list[optuna.trial.FrozenTrial], values: np.ndarray
) -> dict[str, float]:
    study = optuna.create_study(direction=direction)
    study.add_trials(
        optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=float(value))
        for trial, value in zip(trials, values, strict=True)
    )
    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
