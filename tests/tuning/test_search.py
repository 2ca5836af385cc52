"""A whole search on real Ray Tune, Ray Train, DeepSpeed, Optuna and MLflow, small enough for CI."""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
import ray
import signals
import toy_signals
from optuna.trial import TrialState
from ray import cloudpickle
from ray.exceptions import RaySystemError
from ray.tune import TuneError
from toy_signals import ToySignalling

from raymed.data.record import Record
from raymed.errors import RunError, UserError
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.registry.alias import alias_version, seen_version
from raymed.registry.register import assess_and_register
from raymed.storage.folder import Folder
from raymed.systems.toy.recipe import ToyNetwork, ToyRecipe
from raymed.training.checkpoint import newest_step
from raymed.training.engine import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning import execution
from raymed.tuning.budget import Budget
from raymed.tuning.estimate import describe
from raymed.tuning.execution import run_search
from raymed.tuning.result import conclude_search
from raymed.tuning.room import idle_workers, trial_resources, whole_resources
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import BEST_POINT, REASON, Halving

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

for each in (signals, toy_signals, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(each)  # workers cannot import tests
DIVERGES = 1e30


@dataclasses.dataclass(frozen=True)
class Buggy(ToyRecipe):
    """Has a bug."""

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        raise ValueError("a bug of the recipe's")


@dataclasses.dataclass(frozen=True)
class Unfit(ToyRecipe):
    """Has weights of another network."""

    def build(self) -> ToyNetwork:
        raise UserError("the weights do not fit: give others")


@pytest.fixture(scope="module")
def search(prepared, tmp_path_factory) -> Search:
    folder = tmp_path_factory.mktemp("search")
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    train = TrainSettings(epochs=3, global_batch=8, micro_batch=8, lr=3e-3)
    template = RunSpec("search", str(folder), prepared.folder.uri, recipe, train, seed=1)
    space = {"train.lr": Dimension(choices=(3e-3, 3e-9, DIVERGES))}
    settings = SearchSettings(space=space, halving=Halving(1, 3))
    return Search(template, settings, Budget(trials=5), f"sqlite:///{folder}/mlflow.db", "python jobs/tune_lung.py")


@pytest.fixture(scope="module")
def searched(search):
    return run_search(search)


@pytest.fixture(scope="module")
def morning(search, searched):
    return conclude_search(search, searched)


def test_a_diverging_trial_fails_with_its_reason_and_hurts_no_other(searched):
    assert len(searched.trials) == 5
    diverged = [trial for trial in searched.trials if trial.params["train.lr"] == DIVERGES]
    assert diverged, "the seed no longer draws a diverging trial: choose another"
    for trial in diverged:
        assert trial.state == TrialState.FAIL
        assert "not finite" in trial.user_attrs[REASON] or "diverged" in trial.user_attrs[REASON]
    assert searched.trials[0].state == TrialState.COMPLETE
    assert searched.best.params["train.lr"] == 3e-3


def test_stopped_trials_give_their_resources_back(searched):
    deadline = time.time() + 5
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"] and time.time() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]


def test_mlflow_holds_one_parent_and_one_child_per_trial_with_each_epoch_once(search, searched):
    tracker = search.open_tracker()
    runs = tracker.client.search_runs([tracker.experiment_id])
    parent = str(tracker.find(search.name))
    assert tracker.describe(parent).status == "FINISHED"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert len(children) == 5
    for trial in searched.trials:
        run = str(tracker.find(search.trial_key(trial)))
        epochs = [metric.step for metric in tracker.client.get_metric_history(run, "val_loss")]
        assert epochs == sorted(trial.intermediate_values)
        assert tracker.describe(run).status == ("FAILED" if trial.state == TrialState.FAIL else "FINISHED")
        if epochs:
            tags = tracker.describe(run).tags
            assert (tags["raymed.device"], tags["raymed.precision"], tags["raymed.backbone"]) == ("cpu", "float32", "toy")
            metrics = tracker.client.get_run(run).data.metrics
            assert (metrics["filler"], metrics["worker_efficiency"]) == (0.0, 1.0), "one worker, always busy"


def test_the_morning_leaves_a_report_and_a_champion_that_predicts(search, morning, prepared, monkeypatch):
    page = Folder.at(search.template.storage).child("search").read("report.html").decode()
    assert "champion" in page
    assert search.command in page and "CPU worker hours" in page and " h</td>" in page, "what it took, in all and by trial"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", search.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/raymed-toy@champion")
    slices = [record.images[0].pixels[..., 0] for record in prepared.read(prepared.rows("test")[:4])]
    said = model.predict(pd.DataFrame({"patient_id": ["new"], "image": [slices]}))
    probabilities = said.filter(like="p_").iloc[0]
    assert said["patient_id"].tolist() == ["new"]
    assert probabilities.sum() == pytest.approx(1)
    assert said["decision"].iloc[0] == probabilities.idxmax().removeprefix("p_")


def test_workers_that_would_only_idle_are_not_taken_and_their_cpus_become_threads(search):
    """Eight GPUs on a global batch of 2 used to compute seven repeats that did not count."""
    template = dataclasses.replace(
        search.template, workers=2, train=dataclasses.replace(search.template.train, global_batch=1)
    )
    idle = dataclasses.replace(search, template=template)
    each, _ = trial_resources(idle)
    assert (each.workers, each.cpus) == (1, 2)
    assert "2 workers, 1 slices a step: no faster than 1" in idle_workers(idle, each)
    assert not idle_workers(search, trial_resources(search)[0])


def test_a_refit_takes_all_that_the_trials_had_as_workers_that_help_and_threads(search):
    each, concurrent = trial_resources(search)
    total = each.workers * each.cpus * concurrent
    whole = whole_resources(search, search.template)
    assert whole.workers == search.template.helpful(total)
    assert whole.workers * whole.cpus == total
    small = dataclasses.replace(search.template.train, global_batch=1)
    alone = whole_resources(search, dataclasses.replace(search.template, train=small))
    assert (alone.workers, alone.cpus) == (1, total)


def test_a_dry_run_refuses_a_space_of_settings_that_are_not_there(search):
    settings = dataclasses.replace(search.settings, space={"train.lrr": Dimension(low=1e-4, high=1e-2)})
    with pytest.raises(UserError, match="there is no 'lrr'"):
        describe(dataclasses.replace(search, settings=settings))


def test_a_dry_run_leaves_nothing(search, tmp_path):
    place = tmp_path / "new" / "runs"
    template = dataclasses.replace(search.template, storage=str(place))
    describe(dataclasses.replace(search, template=template, tracking_uri=f"sqlite:///{place}/mlflow.db"))
    assert not list(tmp_path.iterdir())


def test_a_bug_in_a_recipe_is_the_reason_of_its_runs_failure(search, prepared, tmp_path):
    recipe = Buggy(**vars(search.template.recipe))
    template = dataclasses.replace(search.template, storage=str(tmp_path), name="buggy", recipe=recipe)
    study = run_search(Search(template, SearchSettings(), Budget(1), f"sqlite:///{tmp_path}/mlflow.db"))
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
    assert study.trials[0].user_attrs[REASON] == "ValueError: a bug of the recipe's"


def test_weights_that_do_not_fit_end_a_search_at_once_with_what_to_mend(search, prepared, tmp_path):
    recipe = Unfit(**vars(search.template.recipe))
    template = dataclasses.replace(search.template, storage=str(tmp_path), name="unfit", recipe=recipe)
    settings, uri = dataclasses.replace(search.settings, concurrent=1), f"sqlite:///{tmp_path}/mlflow.db"
    unfit = dataclasses.replace(search, template=template, settings=settings, tracking_uri=uri)
    with pytest.raises(UserError, match="do not fit"):
        run_search(unfit)
    assert [trial.state for trial in unfit.open_study().trials] == [TrialState.RUNNING], "or the mended search lacks it"
    tracker = unfit.open_tracker()
    assert tracker.describe(str(tracker.find("unfit"))).status == "KILLED"


@pytest.mark.parametrize("error", [RaySystemError("gone"), TuneError("gone")], ids=["Ray", "Tune"])
def test_mlflow_shows_nothing_as_running_once_ray_has_ended(search, tmp_path, monkeypatch, error):
    """Its page said RUNNING for ever of a search that nobody runs."""

    def end():
        raise error

    monkeypatch.setattr(execution, "_tuner", lambda *parts: SimpleNamespace(fit=end))
    template = dataclasses.replace(search.template, storage=str(tmp_path), name="ended")
    ended = dataclasses.replace(search, template=template, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises((RunError, TuneError), match="gone"):
        run_search(ended)
    tracker = ended.open_tracker()
    assert tracker.describe(str(tracker.find("ended"))).status == "KILLED"


def test_a_head_that_was_cut_off_leaves_its_successors_runs_as_they_are_in_mlflow(search, tmp_path, monkeypatch):
    """It noted them as killed, while they trained."""

    def end():
        claims = Folder.at(tmp_path / ".leases" / "cut-off")
        for claim in claims.names():
            claims.delete(claim)  # as who takes over does
        raise RaySystemError("gone")

    monkeypatch.setattr(execution, "_tuner", lambda *parts: SimpleNamespace(fit=end))
    template = dataclasses.replace(search.template, storage=str(tmp_path), name="cut-off")
    cut_off = dataclasses.replace(search, template=template, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(RunError, match="gone"):
        run_search(cut_off)
    tracker = cut_off.open_tracker()
    assert tracker.describe(str(tracker.find("cut-off"))).status == "RUNNING"


def test_running_a_finished_search_again_changes_nothing(search, searched, morning):
    before = {trial.number: (trial.state, trial.params) for trial in searched.trials}
    again = run_search(search)
    assert {trial.number: (trial.state, trial.params) for trial in again.trials} == before
    tracker = search.open_tracker()
    assert again.registered == seen_version(tracker, "raymed-toy"), "its own winner's, which a longer search may replace"
    tracker.client.delete_registered_model_alias("raymed-toy", "champion")  # a person wants none
    assert conclude_search(search, again).data["version"] == morning.data["version"]
    assert alias_version(tracker, "raymed-toy") == ""
    tracker.client.set_registered_model_alias("raymed-toy", "champion", morning.data["version"])
    assert len(tracker.client.search_runs([tracker.experiment_id])) == 6


def test_a_larger_budget_goes_on_with_the_search(search, searched, morning):
    more = run_search(dataclasses.replace(search, budget=Budget(trials=6)))
    assert len(more.trials) == 6
    assert [trial.params for trial in more.trials[:5]] == [trial.params for trial in searched.trials[:5]]


def test_the_same_name_with_other_settings_is_refused_though_nothing_is_left_to_run(search, searched):
    longer = dataclasses.replace(search.template, train=dataclasses.replace(search.template.train, epochs=30))
    with pytest.raises(UserError, match=r"(?s)other settings:.*train\.epochs: was \d+, now 30"):
        run_search(dataclasses.replace(search, template=longer))


def test_when_only_the_champion_is_kept_the_others_can_still_be_compared(search, searched, morning, tmp_path):
    copy = shutil.copytree(Path(search.template.folder.path) / "trials", tmp_path / "search" / "trials")
    elsewhere = dataclasses.replace(search.template, storage=str(tmp_path))
    dataclasses.replace(search, template=elsewhere, keep_checkpoints="champion").prune_checkpoints(searched, searched.best)
    for trial in searched.trials:
        kept = {path.name for path in copy.glob(f"trial-{trial.number:04d}/step-*/*")}
        assert ("model" in kept) == (trial.number == searched.best.number)
        assert "predictions.npz" in kept or trial.state == TrialState.FAIL


def test_a_refit_is_registered_beside_the_figures_of_the_model_before_it_and_tells_of_each_epoch(
    search, searched, morning, caplog
):
    caplog.set_level("INFO", "raymed")
    refitted = conclude_search(search, search.open_study(), refit="trainval")
    assert refitted.data["version"] != morning.data["version"]
    assert refitted.data["figures"] == morning.data["figures"], "the figures belong to the model before refitting"
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("refit")]
    assert re.match(
        r"refit: trial \d on train \+ val for \d epochs, then without each of 3 folds for its temperature, \d workers of \d "
        r"CPUs, (about|under)",
        told[0],
    )
    epochs = searched.best.user_attrs[BEST_POINT]
    assert [line.split("  ")[1] for line in told[1:]] == [f"epoch {epoch}/{epochs}" for epoch in range(1, epochs + 1)] * 4
    version = search.open_tracker().client.get_model_version("raymed-toy", refitted.data["version"])
    assert "cross-fitted: 3 networks" in version.description


def test_a_refit_that_does_not_come_to_its_end_is_not_registered(search, searched, morning, monkeypatch):
    monkeypatch.setattr("raymed.tuning.refit.fit", lambda *settings: {})  # as where its loss is not finite
    before = search.open_tracker().client.get_model_version_by_alias("raymed-toy", "champion").version
    with pytest.raises(RunError, match="ended after epoch 0 of"):
        conclude_search(search, search.open_study(), refit="all")
    assert search.open_tracker().client.get_model_version_by_alias("raymed-toy", "champion").version == before


def test_a_person_can_promote_another_trial(search, searched, morning):
    tracker = search.open_tracker()
    other = next(each for each in searched.trials if each.state != TrialState.FAIL and each.number != searched.best.number)
    run = str(tracker.find(search.trial_key(other)))
    registered = assess_and_register(tracker, search.candidate(run, other), alias="candidate")

    def version(alias: str) -> str:
        return str(tracker.client.get_model_version_by_alias(registered.name, alias).version)

    assert version("candidate") == registered.version != version("champion")


def test_ctrl_c_once_saves_a_checkpoint_within_the_epoch_and_the_same_command_goes_on(search, prepared, tmp_path):
    """A single run, whose worker sends the job what a terminal sends at Ctrl-C."""
    recipe = ToySignalling(
        **vars(search.template.recipe), at=5, count=str(tmp_path / "count"), target=os.getpid(), signal=signal.SIGINT
    )
    template = dataclasses.replace(search.template, name="stopped", storage=str(tmp_path), recipe=recipe)
    single = dataclasses.replace(search, template=template, settings=SearchSettings(), budget=Budget(trials=1))
    with pytest.raises(KeyboardInterrupt):
        run_search(single)
    assert [trial.state for trial in single.open_study().trials] == [TrialState.RUNNING]
    run = Folder.at(f"{tmp_path}/stopped/trials/trial-0000")
    left = newest_step(run)
    assert 9 < left < 18, "nine steps an epoch; it was stopped in the second"
    study = run_search(single)
    assert study.trials[0].state == TrialState.COMPLETE
    assert sorted(study.trials[0].intermediate_values) == [1, 2, 3]
    steps = [
        json.loads(run.read(f"{name}/progress.json"))["global_step"] for name in run.names() if name.startswith("step-")
    ]
    assert max(steps) == 27
