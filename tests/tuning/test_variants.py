"""A fixed list of runs, such as folds: each is trained once, on one decoded data set, and a failing one hurts no other."""

import dataclasses

import pytest
from optuna.trial import TrialState

from raymed.errors import UserError
from raymed.recipes.lung import LungRecipe
from raymed.training.engine import TrainSettings
from raymed.training.loop import FitSpec
from raymed.tuning.night import VARIANT, Night, SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import CHECKPOINT, REASON, Budget

DIVERGES = 1e30


@pytest.fixture(scope="module")
def night(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    template = FitSpec("folds", str(folder), prepared.folder.uri, recipe, TrainSettings(epochs=1, lr=3e-3))
    folds = {f"fold_{fold + 1}": dataclasses.replace(template, fold=fold) for fold in range(2)}
    folds["broken"] = dataclasses.replace(template, train=TrainSettings(epochs=2, lr=DIVERGES))
    return Night(template, SearchSettings(), Budget(0), f"sqlite:///{folder}/mlflow.db", variants=folds)


def test_listed_runs_are_put_in_line_once_and_failed_ones_again(night, tmp_path):
    night = dataclasses.replace(night, template=dataclasses.replace(night.template, storage=str(tmp_path)))
    study = night.open_study()
    budget = night._line_up(study)
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE):
        number, _ = study.ask(budget)
        study.report(number, 1, {"val_loss": 1.0, "best_val_loss": 1.0, "best_epoch": 1}, None)
        study.tell(number, state)
    assert study.ask(budget) is None
    for _ in range(2):  # also when the process that put it in line was lost before it began
        study = night.open_study()
        budget = night._line_up(study)
    number, params = study.ask(budget)
    assert (number, params) == (3, {VARIANT: "fold_2"})
    assert night.spec(study.trial(number)).fold == 1
    assert study.ask(budget) is None


def test_a_space_to_search_and_a_list_of_runs_exclude_each_other(night):
    space = SearchSettings(space={"train.lr": Dimension(1e-4, 1e-2)})
    with pytest.raises(UserError, match="fold_1"):
        dataclasses.replace(night, search=space)
    with pytest.raises(UserError, match="val_loss"):
        watched = dataclasses.replace(night.template, train=TrainSettings(monitor="val_acc"))
        dataclasses.replace(night, template=watched, search=space, variants={})


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_every_run_is_trained_once_and_a_failing_one_is_reported_beside_the_others(night):
    seen = []
    study = night.run(lambda spec, happened, result: seen.append((spec.name, happened)))
    last = {night.label(trial): trial for trial in study.trials}
    assert [last[name].state for name in ("fold_1", "fold_2")] == [TrialState.COMPLETE] * 2
    assert last["broken"].state == TrialState.FAIL
    assert "not finite" in last["broken"].user_attrs[REASON]
    assert {("fold_1", "start"), ("fold_1", "epoch"), ("fold_1", "COMPLETE"), ("broken", "FAIL")} <= set(seen)
    tracker = night.open_tracker()
    for number, name in enumerate(("fold_1", "fold_2")):
        run = tracker.find(night.trial_key(last[name]))
        assert tracker.describe(run).tags["raymed.fold"] == str(number)
        inputs = tracker.client.get_run(run).inputs.dataset_inputs
        assert [each.tags[0].value for each in inputs] == [f"training without fold {number}"]

    checkpoints = {name: last[name].user_attrs[CHECKPOINT] for name in ("fold_1", "fold_2")}
    seen.clear()
    again = night.run(lambda spec, happened, result: seen.append((spec.name, happened)))
    assert {name for name, _ in seen} == {"broken"}, "a finished run is never trained again"
    last = {night.label(trial): trial for trial in again.trials}
    assert {name: last[name].user_attrs[CHECKPOINT] for name in checkpoints} == checkpoints
    assert len(tracker.client.search_runs([tracker.experiment_id])) == 4, "one parent and one child for each run"
