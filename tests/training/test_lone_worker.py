"""One process trains run after run, and nothing of a run is left over for the next."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import write_prepared

from raymed.data.prepared import Prepared
from raymed.data.stream import Staged, stage
from raymed.errors import StorageError
from raymed.recipes.metric import LAST
from raymed.storage.availability import BELIEVED
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training import checkpoint
from raymed.training.checkpoint import FIRST_LIST, checkpoint_names, new_name, newest_step, read_history
from raymed.training.fit import RESTARTS, _fit_alone, fit, resources
from raymed.training.lone_worker import suffices, train_alone
from raymed.training.loop import HISTORY
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.step_log import STEPS

TRAIN = TrainSettings(epochs=2, global_batch=16, micro_batch=5, norm_group=5, lr=3e-3, checkpoint_steps=2)
OTHERS = (
    {"zero_stage": 2, "lr": 1e-2},
    {"zero_stage": 1, "ema": 0.9, "precision": "amp"},
    {"lr": 1e30},  # ends with an infinite loss
)


@ray.remote(num_cpus=1)
class Host:
    """A process that is kept."""

    def train(self, spec: RunSpec, source: Staged) -> list[dict[str, Any]]:
        """What a run reports."""
        reports: list[dict[str, Any]] = []
        train_alone(spec, source, None, False, reports.append)
        return reports


@ray.remote(num_cpus=1)
class BlinkingHost:
    """A process whose storage is away when it first looks for checkpoints."""

    def train(self, spec: RunSpec, source: Staged) -> list[dict[str, Any]]:
        """What a run reports."""
        looks = iter([list[str]()])
        checkpoint.checkpoint_names = lambda run: next(looks, checkpoint_names(run))  # type: ignore[assignment]
        reports: list[dict[str, Any]] = []
        train_alone(spec, source, None, False, reports.append)
        return reports


def spec_of(prepared: Prepared, storage: Path, name: str, seed: int, **train: Any) -> RunSpec:
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    return RunSpec(name, str(storage), prepared.folder.uri, recipe, dataclasses.replace(TRAIN, **train), seed=seed)


def history(spec: RunSpec) -> list[list[float]]:
    """Of each epoch what does not depend on the clock."""
    epochs = read_history(spec.folder.child(checkpoint_names(spec.folder)[-1]))
    return [[epoch[name] for name in ("val_loss", "train_loss", "gradient_norm", "lr", "global_step")] for epoch in epochs]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_after_others_in_one_process_equals_the_first_one_of_a_new_process(prepared: Prepared, tmp_path: Path) -> None:
    fresh = spec_of(prepared, tmp_path, "fresh", 0)
    source = stage(prepared, fresh.all_rows(prepared))
    fit(fresh, source, resources(1, 1))
    host = Host.remote()
    for number, train in enumerate(OTHERS):
        ray.get(host.train.remote(spec_of(prepared, tmp_path, f"other-{number}", 1, **train), source))
    after = spec_of(prepared, tmp_path, "after", 0)
    reports = ray.get(host.train.remote(after, source))
    assert history(after) == history(fresh)
    assert [report["epoch"] for report in reports if "val_loss" in report] == [1, 2]

    newest = checkpoint_names(after.folder)[-1]
    after.folder.delete(newest)  # as if it had been killed in its second epoch
    assert newest_step(after.folder) < newest_step(fresh.folder)
    ray.get(host.train.remote(after, source))
    assert history(after) == history(fresh), "and so does one that goes on"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_that_nobody_validates_keeps_its_last_epoch_and_goes_on_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    prepared, host = write_prepared(tmp_path / "data", patients=6), Host.remote()  # six, who are all to be trained on
    whole, killed = (spec_of(prepared, tmp_path, name, 0, monitor=LAST.name) for name in ("whole", "killed"))
    source = stage(prepared, whole.all_rows(prepared))
    reports = ray.get(host.train.remote(whole, source))
    validations = [report for report in reports if "finished" in report]
    assert [report["best_epoch"] for report in validations] == [1, 2] and "val_loss" not in validations[-1]
    assert validations[-1]["model"].endswith(checkpoint_names(whole.folder)[-1]), "the last is kept"

    ray.get(host.train.remote(dataclasses.replace(killed, stop_after=1), source))
    ray.get(host.train.remote(killed, source))
    last = [read_history(spec.folder.child(checkpoint_names(spec.folder)[-1])) for spec in (whole, killed)]
    assert len({tuple((each["train_loss"], each["gradient_norm"], each["lr"]) for each in epochs) for epochs in last}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_whose_storage_is_away_for_one_look_trains_no_step_again_and_tells_its_history(
    prepared: Prepared, tmp_path: Path
) -> None:
    spec = spec_of(prepared, tmp_path, "blinking", 0, epochs=3)
    source = stage(prepared, spec.all_rows(prepared))
    ray.get(Host.remote().train.remote(dataclasses.replace(spec, stop_after=2), source))
    stood = newest_step(spec.folder)
    reports = ray.get(BlinkingHost.remote().train.remote(spec, source))
    trained = [row["global_step"] for report in reports for row in report.get(STEPS, ())]
    assert min(trained) > stood // 2, "steps that were not told before are, and no others but new ones"
    first, *others = [report for report in reports if "finished" in report]
    assert [each["epoch"] for each in (*first[HISTORY], first)] == [1, 2]
    assert all(HISTORY not in report for report in others)


@pytest.mark.parametrize(("gets_on", "tries"), [(False, 1 + RESTARTS), (True, 6)])
def test_what_a_storage_refuses_for_a_moment_does_not_end_a_run_that_gets_on(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gets_on: bool, tries: int
) -> None:
    """Workers with processes of their own are started again; of one without it was the trial's end."""
    spec, tried = spec_of(prepared, tmp_path, "refused", 0), list[RunSpec]()

    def refused(spec: RunSpec, *_: Any) -> None:
        tried.append(spec)
        if gets_on and len(tried) == 6:
            return
        if gets_on:
            (Path(spec.folder.path) / new_name(len(tried), 1)).mkdir(parents=True)
            spec.folder.write(f"{checkpoint_names(spec.folder)[-1]}/{FIRST_LIST}", b"{}")
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("raymed.training.fit.train_alone", refused)
    with contextlib.nullcontext() if gets_on else pytest.raises(OSError, match="Input/output"):
        _fit_alone(spec, None, None, False)  # type: ignore[arg-type]
    assert len(tried) == tries


def test_a_store_that_denies_access_again_and_again_ends_the_search_and_not_trial_after_trial(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[int]()

    def denied(*_: Any) -> None:
        tried.append(1)
        raise OSError("When uploading: AWS Error ACCESS_DENIED during PutObject operation")

    slept = list[float]()
    monkeypatch.setattr("raymed.clock.sleep", slept.append)
    monkeypatch.setattr("raymed.training.fit.train_alone", denied)
    with pytest.raises(StorageError, match="mend the permissions"):
        _fit_alone(spec_of(prepared, tmp_path, "denied", 0), None, None, False)  # type: ignore[arg-type]
    assert len(tried) == 1 + RESTARTS and sum(slept) == BELIEVED, "at first it may only lack credentials for a moment"


def test_only_on_a_machine_of_its_own_is_a_run_left_without_ray_trains_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    for own in (True, False):
        monkeypatch.setattr("raymed.training.lone_worker.is_own", lambda own=own: own)
        assert [suffices(workers) for workers in (1, 2)] == [own, False]
