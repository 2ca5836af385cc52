"""Optuna's private parts are what they were."""

from __future__ import annotations

import optuna
from optuna.distributions import FloatDistribution
from upgrade import since

from raymed.compat import optuna as compat


def test_an_upgrade_of_optuna_left_trials_queues_and_rungs_as_they_were() -> None:
    with since(compat):
        pruner = optuna.pruners.SuccessiveHalvingPruner(1, 2)
        study = optuna.create_study(pruner=pruner)
        study.enqueue_trial({"x": 0.5})
        (waiting,) = study.get_trials()
        assert compat.queued_params(waiting) == {"x": 0.5}
        asked = study.ask({"x": FloatDistribution(0, 1)})
        again = compat.trial_of(study, study.get_trials()[0])
        assert (again.number, again.params) == (asked.number, {"x": 0.5})
        again.report(2.0, 1)
        again.should_prune()
        assert study.get_trials()[0].system_attrs[compat.rung_key(0)] == 2.0
        assert {compat.JournalOperation.CREATE_STUDY, compat.JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE} <= set(
            compat.JournalOperation
        )
