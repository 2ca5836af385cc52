"""A fixed list of runs, such as folds; that they train side by side is tested with the CLIP jobs."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from optuna.trial import TrialState

from raymed.data.plan import SliceSettings
from raymed.errors import RunError, UserError
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.checkpoint import Progress, checkpoint_names, new_name
from raymed.training.engine import TrainSettings
from raymed.training.loop import MODEL
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.run_outcome import run_outcome
from raymed.tuning.search import LISTED, Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import Study


@pytest.fixture(scope="module")
def search(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("folds", str(folder), prepared.folder.uri, recipe, TrainSettings(epochs=1, lr=3e-3))
    folds = {f"fold_{fold + 1}": dataclasses.replace(template, fold=fold) for fold in range(2)}
    folds["whole"] = template
    return Search(template, SearchSettings(), Budget(0), f"sqlite:///{folder}/mlflow.db", runs=folds)


def test_listed_runs_are_put_in_line_once_and_failed_ones_again(search, tmp_path):
    search = dataclasses.replace(search, template=dataclasses.replace(search.template, storage=str(tmp_path)))
    study = search.open_study()
    budget = search.enqueue_retries(study)
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE):
        number, _ = study.ask(budget)
        study.report(number, 1, {"val_loss": 1.0, "best_val_loss": 1.0, "best_epoch": 1})
        study.tell(number, state)
    assert study.ask(budget) is None
    for _ in range(2):  # also when the process that put it in line was lost before it began
        study = search.open_study()
        budget = search.enqueue_retries(study)
    number, params = study.ask(budget)
    assert (number, params) == (3, {LISTED: "fold_2"})
    assert search.spec_of(study.trial(number)).fold == 1
    assert study.ask(budget) is None


def test_a_listed_run_killed_between_two_entries_of_the_record_is_known_by_its_name(search, tmp_path):
    search = dataclasses.replace(search, template=dataclasses.replace(search.template, storage=str(tmp_path)))
    search.open_study().study.ask()
    study = search.open_study()
    assert list(search.last_trials(study)) == ["fold_1"]
    assert search.enqueue_retries(study).trials == 3


@pytest.mark.parametrize("kept", ["best", "champion"])
def test_of_a_run_that_was_tried_twice_the_winner_s_checkpoint_stays(search, tmp_path, kept):
    """Both tries are in one folder, and the first one may have known another best."""
    template = dataclasses.replace(search.template, storage=str(tmp_path))
    search = dataclasses.replace(search, template=template, runs={"whole": template}, keep_checkpoints=kept)
    study = search.open_study()
    names = [new_name(step, step) for step in (1, 2, 3, 4, 5)]
    for state, best in ((TrialState.FAIL, names[0]), (TrialState.COMPLETE, names[1])):
        number, _ = study.ask(search.enqueue_retries(study))
        folder = search.spec_of(study.trial(number)).folder
        study.report(number, 1, {"val_loss": 1.0, "best_val_loss": 1.0, "best_epoch": 1, MODEL: folder.child(best).uri})
        study.tell(number, state)
    for name in names:
        folder.child(name).make()
        for part in ("sealed-000.json", "weights"):
            folder.child(name).write(part, b"{}")
    search.prune_checkpoints(study, study.trials[-1])
    assert checkpoint_names(folder) == [names[0], names[1], names[3], names[4]]
    assert folder.exists(f"{names[1]}/weights")


def test_runs_that_are_not_searched_refuse_an_objective_that_none_of_their_epochs_is_chosen_by(search):
    for runs in (search.runs, {}):
        with pytest.raises(UserError, match=r"give --train\.monitor macro_auc, and leave search\.objective out"):
            dataclasses.replace(search, settings=SearchSettings(objective="macro_auc"), runs=runs)


def test_runs_that_a_kill_kept_from_being_put_in_line_are_put_there(search, tmp_path, monkeypatch):
    search = dataclasses.replace(search, template=dataclasses.replace(search.template, storage=str(tmp_path)))
    enqueue, lined = Study.enqueue, []

    def dying(study, params):
        if len(lined) == 2:
            raise KeyboardInterrupt
        lined.append(params)
        enqueue(study, params)

    monkeypatch.setattr(Study, "enqueue", dying)
    with pytest.raises(KeyboardInterrupt):
        search.open_study()
    monkeypatch.setattr(Study, "enqueue", enqueue)
    study = search.open_study()
    assert search.enqueue_retries(study).trials == 3
    assert {params[LISTED] for params in study.waiting} == set(search.runs)


@pytest.mark.parametrize("dimension", [Dimension(1e-4, 1e-3), Dimension(choices=(0.1, 0.2)), Dimension(0, 2)])
def test_a_search_that_would_begin_outside_of_its_space_is_refused(search, dimension):
    with pytest.raises(UserError, match=r"begins with train\.lr 0\.003"):
        dataclasses.replace(search, settings=SearchSettings(space={"train.lr": dimension}), runs={})


def test_the_points_of_a_grid_come_first_each_once_and_then_the_search(search, tmp_path):
    template = dataclasses.replace(search.template, storage=str(tmp_path))
    space = {"train.lr": Dimension(1e-4, 1e-2, log=True), "train.global_batch": Dimension(choices=(2, 4, 8))}
    grid = ({"train.global_batch": 4}, {"train.lr": 1e-3, "train.global_batch": 2}, {"train.lr": 3e-3})
    whole = SearchSettings(space=space, first=grid)
    template = dataclasses.replace(template, train=dataclasses.replace(template.train, global_batch=8))
    searched = dataclasses.replace(search, template=template, settings=whole, runs={}, budget=Budget(5))
    study = searched.open_study()
    asked = [study.ask(searched.budget)[1] for _ in range(4)]
    assert asked[:3] == [
        {"train.lr": 3e-3, "train.global_batch": 8},
        {"train.lr": 3e-3, "train.global_batch": 4},
        {"train.lr": 1e-3, "train.global_batch": 2},
    ]
    assert asked[3] not in asked[:3]
    for wrong in ({"train.lr": 0.5}, {"train.epochs": 3}):
        with pytest.raises(UserError, match=f"search.first has {next(iter(wrong))} .*, which search.space does not hold"):
            dataclasses.replace(searched, settings=dataclasses.replace(whole, first=(wrong,)))


def test_a_search_may_vary_which_slices_are_used_and_has_the_rows_of_all_its_trials(search, prepared):
    template = dataclasses.replace(search.template, sampling=SliceSettings(per_patient=1))
    space = SearchSettings({"slices.per_patient": Dimension(choices=(1, 2, 3))})
    searched = dataclasses.replace(search, template=template, settings=space, runs={})
    assert searched.defaults == {"slices.per_patient": 1} and searched.varies_rows
    trial = searched.run_spec(1, {"slices.per_patient": 2})
    assert trial.sampling == SliceSettings(per_patient=2) and trial.recipe == template.recipe
    staged = template.all_rows(prepared, whole=True)
    assert set(trial.all_rows(prepared)) <= set(staged) and len(trial.all_rows(prepared)) > len(template.all_rows(prepared))
    with pytest.raises(UserError, match=r"no 'per_pateint': choose among per_patient"):
        dataclasses.replace(searched, settings=SearchSettings({"slices.per_pateint": Dimension(choices=(1, 2))}))


def test_a_space_to_search_and_a_list_of_runs_exclude_each_other(search):
    space = SearchSettings(space={"train.lr": Dimension(1e-4, 1e-2)})
    with pytest.raises(UserError, match="fold_1"):
        dataclasses.replace(search, settings=space)
    with pytest.raises(UserError, match="val_loss"):
        watched = dataclasses.replace(search.template, train=TrainSettings(monitor="val_acc"))
        dataclasses.replace(search, template=watched, settings=space, runs={})


def test_a_search_may_aim_at_any_metric_that_the_system_declares_for_it(search):
    space, template = {"train.lr": Dimension(1e-4, 1e-2)}, search.template
    with pytest.raises(
        UserError, match=r"search\.objective is val_acuracy: trials of toy are compared by one of val_loss, acc"
    ):
        dataclasses.replace(search, settings=SearchSettings(space, objective="val_acuracy"), runs={})
    with pytest.raises(UserError, match="compares trials, and their epochs, by accuracy"):
        dataclasses.replace(search, settings=SearchSettings(space, objective="accuracy"), runs={})
    watched = dataclasses.replace(template, train=dataclasses.replace(template.train, monitor="accuracy"))
    aimed = SearchSettings(space, objective="accuracy")
    search = dataclasses.replace(search, template=watched, settings=aimed, runs={})
    assert search.run_spec(0, {"train.lr": 2e-3}).monitor == search.objective
    assert search.objective.direction == "max"


def test_a_run_that_failed_after_good_epochs_is_no_success(search, tmp_path):
    template = dataclasses.replace(search.template, storage=str(tmp_path))
    search = dataclasses.replace(search, template=template, runs={})
    study = search.open_study()
    number, _ = study.ask(search.enqueue_retries(study))
    study.report(number, 1, {"val_loss": 0.5, "best_val_loss": 0.5, "best_epoch": 1, "model": "CHECKPOINT"})
    study.tell(number, TrialState.FAIL, "the loss is not finite at step 9")
    with pytest.raises(RunError, match=r"not finite at step 9\nThe same command goes on .* epoch 1: CHECKPOINT"):
        run_outcome(search, study)


def test_a_run_that_was_tried_again_tells_its_best_epoch_though_that_lay_before_its_failure(search, tmp_path):
    template = dataclasses.replace(search.template, storage=str(tmp_path), name="single")
    single = dataclasses.replace(search, template=template, runs={}, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    study, folder = single.open_study(), Path(template.folder.path) / "trials" / "trial-0000"
    best = folder / "step-00000002-000002-ab"
    best.mkdir(parents=True)
    history: list[dict[str, float]] = []
    for state in (TrialState.FAIL, TrialState.COMPLETE):
        number, _ = study.ask(single.enqueue_retries(study))
        for loss in (0.9, 0.4) if state == TrialState.FAIL else (0.6,):
            history.append({"val_loss": loss, "best_val_loss": min(loss, 0.4), "best_epoch": 2, "epoch": len(history) + 1})
            study.report(number, len(history), {**history[-1], "model": str(best)})
        study.tell(number, state)
    Progress(epoch=2, history=history[:2]).write(best)
    outcome = run_outcome(single, study)
    assert (outcome.data["val_loss"], outcome.data["best_epoch"], outcome.data["epochs"]) == (0.4, 2, 3)
    shutil.rmtree(best)
    with pytest.raises(UserError, match="step-00000002-000002-ab is not there any more"):
        run_outcome(single, study)
