"""The refit is no silent quarter of an hour."""

import queue

import pytest

from raymed.training.loop import FAILED
from raymed.training.reports import LOST
from raymed.tuning import refit
from raymed.tuning.refit import _Listener


class Line(queue.Queue):
    """Ray's queue, in this process."""

    def __init__(self, actor_options):
        super().__init__()

    def shutdown(self, force):
        """Nothing."""


def test_each_epoch_is_told_with_the_time_left_and_so_is_a_lost_worker(monkeypatch, caplog):
    monkeypatch.setattr(refit, "Queue", Line)
    caplog.set_level("INFO", "raymed")
    with _Listener(3) as listener:
        for epoch in (1, 2):
            report = {"val_loss": 0.4, "epoch": epoch, "train_loss": 0.5 / epoch, "seconds": 90.0}
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
    with pytest.raises(KeyboardInterrupt), _Listener(3) as listener:
        listener._queue.put(None)
        raise KeyboardInterrupt
    listener._thread.join(10)
    assert not listener._thread.is_alive()
