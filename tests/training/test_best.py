"""Best epoch and early stopping: compared first, then remembered."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymed.errors import RunError
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.training.best import Best
from raymed.training.checkpoint import Progress

ACCURACY = Metric("val_acc", "%", "max", "{:.1f} %", chooses_epoch=True)


def follow(values: list[float], monitor: Metric = ACCURACY, min_delta: float = 0.0) -> list[tuple[int, int]]:
    """(best epoch, epochs waited) after each epoch."""
    best, seen = Best(), []
    for epoch, value in enumerate(values, start=1):
        best.update(epoch, {monitor.name: value}, monitor, min_delta)
        seen.append((best.epoch, best.waited))
    return seen


def test_an_improving_run_never_waits():
    """Comparing after the best was overwritten would make every run stop after exactly `patience` epochs."""
    assert follow([50.0, 60.0, 70.0, 80.0]) == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert follow([0.9, 0.8, 0.7], VAL_LOSS) == [(1, 0), (2, 0), (3, 0)]


def test_a_smaller_gain_than_min_delta_is_kept_as_the_best_model_but_ends_no_waiting():
    assert follow([90.0, 90.05, 90.1, 90.125, 89.0], min_delta=0.1) == [(1, 0), (2, 1), (3, 2), (4, 0), (4, 1)]


def test_small_gains_add_up_to_an_improvement():
    assert [waited for _, waited in follow([90.0, 90.0625, 90.125, 90.1875], min_delta=0.1)] == [0, 1, 0, 1]


def test_among_equal_epochs_the_first_is_the_best():
    assert follow([80.0, 80.0, 80.0]) == [(1, 0), (1, 1), (1, 2)]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.sampled_from([VAL_LOSS, ACCURACY]))
def test_the_best_epoch_is_the_first_extreme_of_the_history(values, monitor):
    extreme = max(values) if monitor == ACCURACY else min(values)
    assert follow(values, monitor)[-1][0] == values.index(extreme) + 1


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20), st.integers(1, 19), st.sampled_from([0.0, 0.5]))
def test_waiting_goes_on_where_a_checkpoint_left_it(values, cut, delta):
    cut = min(cut, len(values) - 1)
    best = Best()
    for epoch, value in enumerate(values[:cut], start=1):
        best.update(epoch, {"val_loss": value}, VAL_LOSS, delta)
    best = Best(**json.loads(json.dumps(dataclasses.asdict(best))))
    for epoch, value in enumerate(values[cut:], start=cut + 1):
        best.update(epoch, {"val_loss": value}, VAL_LOSS, delta)
    assert (best.epoch, best.waited) == follow(values, VAL_LOSS, delta)[-1]


def test_a_checkpoint_keeps_the_best_epoch_and_the_waiting(tmp_path):
    progress = Progress(epoch=5, best=Best(3, 91.5, 91.0, 2))
    progress.write(tmp_path)
    assert Progress.read(tmp_path) == progress


def test_a_metric_that_the_epoch_lacks_is_named():
    with pytest.raises(RunError, match=r"val_acc.*val_loss"):
        Best().update(1, {"val_loss": math.pi}, ACCURACY, 0.0)


def test_what_stopping_waits_for_is_not_what_the_best_epoch_is_chosen_by():
    best, seen = Best(), []
    for epoch, (accuracy, loss) in enumerate([(60.0, 0.9), (70.0, 1.0), (65.0, 1.1), (65.0, 0.5)], start=1):
        best.update(epoch, {"val_acc": accuracy, "val_loss": loss}, ACCURACY, 0.0, VAL_LOSS)
        seen.append((best.epoch, best.waited))
    assert seen == [(1, 0), (2, 1), (2, 2), (2, 0)]
    with pytest.raises(RunError, match=r"train\.patience_monitor is val_loss"):
        best.update(5, {"val_acc": 1.0}, ACCURACY, 0.0, VAL_LOSS)
