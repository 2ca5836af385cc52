"""What a system declares of its metrics."""

import numpy as np
import pytest

from raymed.evaluation.metrics import judge_patients
from raymed.recipes.metric import CLASSIFIER, VAL_LOSS, Metric


def test_a_metric_is_better_in_its_own_direction_and_written_in_its_own_way():
    share = Metric("val_acc", "%", "max", "{:.1f} %", chooses_epoch=True, chooses_trial=True)
    assert share.is_better(0.5, 0.4) and not share.is_better(0.5, 0.4, 0.2)
    assert VAL_LOSS.is_better(0.4, 0.5) and not VAL_LOSS.is_better(0.4, 0.5, 0.2)
    assert (share.best([1, 3, 2]), VAL_LOSS.best([1, 3, 2])) == (3, 1)
    assert (share.best([]), VAL_LOSS.best([])) == (-np.inf, np.inf)
    assert share.show(75) == "val_acc 75.0 %"


def test_what_chooses_trials_by_their_best_epoch_must_choose_that_epoch():
    with pytest.raises(ValueError, match="choose those too"):
        Metric("auc", "", "max", "{}", chooses_trial=True)


def test_a_classifier_gives_what_it_declares():
    columns = {
        "patient": np.array(list("aabbcc"), dtype=object),
        "label": np.array([0, 0, 1, 1, 0, 0]),
        "source": np.array(["made"] * 6, dtype=object),
    }
    metrics = judge_patients(np.random.default_rng(0).normal(size=(6, 2)), columns, ("no", "yes"))
    assert {metric.name for metric in CLASSIFIER if not metric.name.startswith("train_")} <= metrics.keys()
