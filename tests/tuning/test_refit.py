"""The refit is no silent quarter of an hour."""

import dataclasses
import queue
from types import SimpleNamespace

import numpy as np
import pytest

from raymed.data.plan import SliceSettings
from raymed.errors import RunError
from raymed.storage.folder import Folder
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.checkpoint import Progress, checkpoint_names, new_name, seal
from raymed.training.loop import FAILED
from raymed.training.reports import LOST
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning import refit
from raymed.tuning.budget import Budget
from raymed.tuning.refit import SPLITS, _as_far, _at_its_end, _Listener, _trainings
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension

SPEC = SimpleNamespace(train=TrainSettings(), stop_after=3)


class Line(queue.Queue):
    """Ray's queue, in this process."""

    def __init__(self, actor_options):
        super().__init__()

    def shutdown(self, force):
        """Nothing."""


def test_each_epoch_is_told_with_the_time_left_and_so_is_a_lost_worker(monkeypatch, caplog):
    monkeypatch.setattr(refit, "Queue", Line)
    caplog.set_level("INFO", "raymed")
    with _Listener(SPEC) as listener:
        for epoch in (1, 2):
            report = {"val_loss": 0.4, "epoch": epoch, "train_loss": 0.5 / epoch, "seconds": 90.0, "finished": 0.0}
            listener.callback.after_report(None, [report], None)
        listener.callback.after_report(None, [{"epoch": 2, "global_step": 7}], None)  # a checkpoint within the epoch
        listener._queue.put({LOST: "worker 1 was lost; it goes on from step 7"})
        listener.callback.after_report(None, [{FAILED: "the loss is not finite"}], None)
    assert [record.getMessage() for record in caplog.records] == [
        "refit  epoch 1/3  train_loss 0.5000  |  about 0:03 h left",
        "refit  epoch 2/3  train_loss 0.2500  |  about 0:01 h left",
        "refit  worker 1 was lost; it goes on from step 7",
    ]
    assert listener.last == {FAILED: "the loss is not finite"}


def test_a_refit_that_is_cut_off_leaves_no_thread_that_waits(monkeypatch):
    monkeypatch.setattr(refit, "Queue", Line)
    with pytest.raises(KeyboardInterrupt), _Listener(SPEC) as listener:
        listener._queue.put(None)
        raise KeyboardInterrupt
    listener._thread.join(10)
    assert not listener._thread.is_alive()


def test_a_refit_of_one_epoch_ends_with_the_checkpoint_of_its_end(tmp_path, monkeypatch):
    """Told to leave in its validation it saves that step, and going on once more: of equal steps a random name decided."""
    spec = SimpleNamespace(folder=Folder.at(tmp_path), storage=str(tmp_path), train=TrainSettings(), stop_after=1)
    names = iter(["f" * 32, "0" * 32])
    monkeypatch.setattr("uuid.uuid4", lambda: SimpleNamespace(hex=next(names)))
    for epoch in (0, 1):
        with pytest.raises(RunError, match="ended after epoch 0 of 1: why"):
            _at_its_end(spec, ": why")
        saved = tmp_path / new_name(9, 1 + epoch)
        saved.mkdir()
        Progress(epoch=epoch, global_step=9, saved=1 + epoch).write(saved)
        seal(saved, 0, 1)
    assert _at_its_end(spec, "") == Folder.at(saved).uri
    looks, real = iter([list[str]()]), checkpoint_names
    monkeypatch.setattr("raymed.training.checkpoint.checkpoint_names", lambda run: next(looks, real(run)))
    assert _at_its_end(spec, "") == Folder.at(saved).uri, "though the storage was away for one look"


def test_a_refit_goes_as_far_as_the_winner_was_best_however_that_was_counted(prepared, tmp_path):
    """45 train slices in steps of 16 are 3 steps an epoch; with val and test there are more."""
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    spec = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(epochs=10, global_batch=16))

    def far(best, **train):
        winner = dataclasses.replace(spec, train=dataclasses.replace(spec.train, **train))
        again = _as_far(winner, best, _trainings(winner, SPLITS["all"])[0])
        return again.stop_after, again.train.validate_steps

    steps, more = (
        len(dataclasses.replace(spec, train_on=splits).plan(prepared, 0).batches) for splits in (("train",), SPLITS["all"])
    )
    assert steps < more
    assert far(4) == (4, 0), "epochs"
    assert far(4, steps=8 * steps) == (4 * steps, steps), "the steps of the winner's epochs: those of more rows are longer"
    assert far(9, steps=9 * steps - 1) == (9 * steps - 1, steps), "its last epoch was cut"
    assert far(2 * steps, steps=8 * steps, validate_steps=steps) == (2 * steps, steps), "steps are steps"
    assert far(2 * steps, validate_steps=steps) == (2 * more, steps), "as far along a longer schedule"


def test_a_refit_takes_the_slices_that_the_winner_took_and_all_patients(prepared, tmp_path):
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    spec = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(epochs=4), SliceSettings(4, limit=8))
    settings = SearchSettings(space={"slices.per_patient": Dimension(choices=(2, 4))})
    search = Search(spec, settings, Budget(1), "sqlite://")
    winner = search.run_spec(3, {"slices.per_patient": 2})
    again = _as_far(winner, 4, _trainings(winner, SPLITS["all"])[0])
    assert again.sampling == SliceSettings(2)


def test_every_patient_of_train_and_val_is_asked_once_by_a_network_that_was_trained_without_it(prepared, tmp_path):
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    train = TrainSettings(epochs=4, patience=2)
    whole, *folds = _trainings(RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, train), ("train", "val"))
    assert len(folds) == prepared.folds > 1 and whole.train_on == ("train", "val")
    asked = np.concatenate([prepared.rows("val", fold.fold) for fold in folds])
    assert sorted(asked) == sorted(np.concatenate([prepared.rows(split) for split in ("train", "val")]))
    for fold in folds:
        trained = np.concatenate([prepared.rows(split, fold.fold) for split in fold.train_on])
        patients = [
            set(prepared.columns(rows, ["patient"])["patient"]) for rows in (trained, prepared.rows("val", fold.fold))
        ]
        assert not patients[0] & patients[1]
        assert fold.train.patience == 0, "the fold left out would choose the epoch"
