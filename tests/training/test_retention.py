"""What stays of a run's checkpoints, over kills, and what is removed."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train import CheckpointConfig
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2.api.exceptions import WorkerGroupError

from raymed.compat.ray_train import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from raymed.storage import availability
from raymed.storage.folder import Folder
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training import fit as fitting
from raymed.training.checkpoint import Checkpoints, checkpoint_names, new_name
from raymed.training.retention import Retention, scratch, sweep
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec


def save(run: Path, step: int) -> str:
    name = new_name(step, step)
    (run / name).mkdir(parents=True)
    for part in ("weights", "sealed-000.json"):
        (run / name / part).write_bytes(bytes(1000))
    return name


def opened(run: Path, newest: str = "", model: str = "", keep_all: bool = False) -> Retention:
    names = checkpoint_names(Folder.at(run))
    torn = [name for name in names if name > newest]
    return Retention(Folder.at(run), keep_all, Checkpoints(names, torn, newest), model)


def test_the_two_newest_and_the_best_stay(tmp_path):
    retention, names = opened(tmp_path), []
    for step in range(1, 7):
        names.append(save(tmp_path, step))
        retention.add(names[-1], names[min(step, 2) - 1])
    assert checkpoint_names(Folder.at(tmp_path)) == [names[1], names[4], names[5]]


def test_the_best_before_stays_until_the_search_knows_of_a_better(tmp_path):
    """A search that is lost in between, and has no time left for the run to tell it again, judges the one it knows."""
    names = [save(tmp_path, step) for step in (1, 2, 3)]
    retention = opened(tmp_path, names[1], names[0])
    retention.add(names[2], names[2])
    assert names[0] in checkpoint_names(Folder.at(tmp_path))
    fourth = save(tmp_path, 4)
    retention.add(fourth, names[2])
    assert checkpoint_names(Folder.at(tmp_path)) == [names[2], fourth]


def test_what_a_power_cut_brought_back_after_a_run_s_end_is_swept(tmp_path):
    names = [save(tmp_path, step) for step in range(1, 6)]
    (tmp_path / names[4] / "sealed-000.json").unlink()
    sweep(Folder.at(tmp_path), {names[0]})
    assert checkpoint_names(Folder.at(tmp_path)) == [names[0], names[2], names[3]], "what was never whole is no newest one"


def test_a_storage_that_blinks_at_a_run_s_end_costs_no_checkpoint(tmp_path, monkeypatch):
    names, exists, looks = [save(tmp_path, step) for step in range(1, 5)], Folder.exists, []

    def blink(folder, name=""):
        looks.append(name)
        return exists(folder, name) and looks.count(name) > 1

    monkeypatch.setattr(Folder, "exists", blink)
    sweep(Folder.at(tmp_path), {names[0]})
    assert looks and checkpoint_names(Folder.at(tmp_path)) == names
    sweep(Folder.at(tmp_path), {names[0]})
    assert checkpoint_names(Folder.at(tmp_path)) == [names[0], *names[2:]]


def test_a_storage_that_does_not_list_when_a_checkpoint_was_saved_ends_no_run(tmp_path, monkeypatch):
    """Of a run in its trial's own process it was the trial's end."""
    names = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    retention = opened(tmp_path, names[2], names[2])
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "names", lambda folder: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        retention.add(names[3], names[3])
        sweep(Folder.at(tmp_path), set())
    assert checkpoint_names(Folder.at(tmp_path)) == names
    fifth = save(tmp_path, 5)
    retention.add(fifth, names[3])
    assert checkpoint_names(Folder.at(tmp_path)) == [names[3], fifth], "what was left is removed the next time"


def test_twenty_kills_while_a_checkpoint_is_written_leave_no_more_than_one(tmp_path):
    """Each leaves a torn checkpoint of a later step than the one that the run goes on from."""
    newest = save(tmp_path, 1)
    opened(tmp_path).add(newest, newest)
    for kill in range(20):
        torn = save(tmp_path, 100 + kill)
        retention = opened(tmp_path, newest, newest)
        assert torn in checkpoint_names(Folder.at(tmp_path)), "before a newer one is durable nothing is removed"
        following = save(tmp_path, 2 + kill)
        retention.add(following, following)
        assert torn not in checkpoint_names(Folder.at(tmp_path))
        newest = following
    assert sum(path.stat().st_size for path in tmp_path.rglob("weights")) <= 3000


def test_where_all_are_kept_only_torn_ones_go(tmp_path):
    names = [save(tmp_path, step) for step in (1, 2, 3, 9)]
    retention = opened(tmp_path, names[2], names[0], keep_all=True)
    names.append(save(tmp_path, 4))
    retention.add(names[-1], names[0])
    assert set(checkpoint_names(Folder.at(tmp_path))) == set(names) - {names[3]}


def test_a_worker_that_outlives_its_search_and_the_one_that_goes_on_take_nothing_from_each_other(tmp_path):
    first = save(tmp_path, 1)
    outliving, following = opened(tmp_path, first), opened(tmp_path, first)
    for step in (2, 3, 4):
        under_way = save(tmp_path, step)
        following.add(save(tmp_path, step), "")
        outliving.add(under_way, under_way)
    assert len(checkpoint_names(Folder.at(tmp_path))) == 4, "of each its two newest"
    (tmp_path / under_way / "sealed-000.json").unlink()
    sweep(Folder.at(tmp_path), set())
    assert under_way not in checkpoint_names(Folder.at(tmp_path))


@pytest.mark.slow
def test_the_local_copy_that_a_killed_worker_left_is_removed_and_a_living_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = Folder.at(tmp_path / "run")
    script = f"""
import os, tempfile
from raymed.storage.folder import Folder
from raymed.training.retention import scratch
tempfile.tempdir = {str(tmp_path)!r}
with scratch(Folder.at({run.uri!r}), 0) as folder:
    (folder / "weights").write_bytes(bytes(1000))
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    (left,) = tmp_path.glob("raymed-*")
    with scratch(run, 1):
        assert left.exists(), "of another worker"
    with scratch(run, 0) as outer:
        assert not left.exists()
        with scratch(run, 0):
            assert outer.exists()


def test_a_run_of_before_goes_on_whose_checkpoints_ray_train_had_listed(prepared, tmp_path, monkeypatch):
    """One of that list is removed once newer ones are durable; then Ray Train refused each further start."""
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    spec = RunSpec("before", str(tmp_path), prepared.folder.uri, recipe, TrainSettings())
    save(tmp_path / "before", 1)
    listed = {"checkpoint_dir_name": "step-00000000-gone", "metrics": {}}
    lists = ("pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names")
    lists += ("timed_out_validation_checkpoint_dir_names", "failed_validation_checkpoint_dir_names")
    snapshot = {"checkpoint_results": [listed], "checkpoint_report_indices": [0], "current_report_index": 1}
    file = tmp_path / "before" / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    file.write_text(json.dumps(snapshot | {name: [] for name in lists}))

    class Start:
        """What Ray Train does before its workers begin."""

        def fit(self) -> None:
            CheckpointManager(CheckpointConfig(), StorageContext(spec.storage, spec.name))

    with pytest.raises(CheckpointManagerInitializationError, match="does not exist anymore"):
        Start().fit()
    monkeypatch.setattr(fitting, "_trainer", lambda *_: Start())
    (tmp_path / "before" / checkpoint_names(spec.folder)[0] / "progress.json").write_text('{"history": [{"epoch": 1}]}')
    assert fitting.fit(spec, None, None) == {"epoch": 1}


def test_a_run_whose_end_cut_a_checkpoint_short_has_the_metrics_of_the_one_before(tmp_path):
    run = tmp_path / "run"
    (run / save(run, 1) / "progress.json").write_text('{"history": [{"epoch": 1}]}')
    for file in (run / save(run, 2)).iterdir():
        file.unlink()
    assert fitting._last_metrics(Folder.at(run)) == {"epoch": 1}


def test_a_run_that_loses_its_workers_while_the_storage_is_away_does_not_begin_anew(prepared, tmp_path, monkeypatch):
    """No checkpoint is seen then, and Ray Train would make the run's folder below the mount point."""
    storage, away = tmp_path / "storage", tmp_path / "away"
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    spec = RunSpec("run", str(storage), prepared.folder.uri, recipe, TrainSettings())
    save(storage / "run", 1)
    monkeypatch.setattr(availability, "PAUSE", 0.05)
    starts: list[bool] = []

    class Start:
        def fit(self) -> None:
            starts.append(storage.exists())
            if len(starts) == 1:
                newest = storage / "run" / save(storage / "run", 2)
                (newest / "progress.json").write_text('{"history": [{"epoch": 2}]}')
                storage.rename(away)
                threading.Timer(0.5, away.rename, [storage]).start()
                raise WorkerGroupError("its machine is gone", {0: ActorDiedError()})

    monkeypatch.setattr(fitting, "_trainer", lambda *_: Start())
    assert fitting.fit(spec, None, None) == {"epoch": 2}
    assert starts == [True, True]
