"""A model is shown beside what needs no picture."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_intervals import NAMES, gaussian_patients

from raymed.evaluation import summary
from raymed.evaluation.comparison import comparison
from raymed.evaluation.metrics import evaluate
from raymed.evaluation.patients import Patients


def patients(sizes: tuple[int, ...], separation: float, sources: np.ndarray | None = None, seed: int = 0) -> Patients:
    labels = np.repeat(np.arange(4), sizes)
    drawn = gaussian_patients(labels, separation, np.random.default_rng(seed))
    return drawn if sources is None else dataclasses.replace(drawn, sources=sources[labels])


def test_a_model_that_is_no_better_than_the_most_frequent_class_is_told_so() -> None:
    weak = evaluate(patients((80, 10, 10, 10), 0.1), NAMES, bootstrap=5)
    assert weak.baselines.accuracy == pytest.approx(80 / 110) and not weak.beats_majority
    assert "not surely better" in comparison(weak)["always normal"]
    strong = evaluate(patients((80, 10, 10, 10), 4.0), NAMES, bootstrap=5)
    assert strong.beats_majority and "not surely better" not in comparison(strong)["always normal"]


def test_the_loss_to_beat_is_that_of_the_best_constant_answer() -> None:
    evaluation = evaluate(patients((80, 10, 10, 10), 0.0), NAMES, bootstrap=5)
    assert evaluation.baselines.loss == pytest.approx(evaluation.metrics["loss"].value)  # it knows the frequencies alone


def test_a_source_that_gives_the_class_away_is_named_and_one_that_does_not_is_not() -> None:
    telling = np.array(["clinic", "clinic", "ward", "ward"], dtype=object)
    evaluation = evaluate(patients((30, 30, 30, 30), 0.0, telling), NAMES, bootstrap=5)
    source = evaluation.baselines.source
    assert source and source.tells
    assert source.macro_auc == pytest.approx(roc_auc_score(np.repeat([0, 1, 0], [30, 30, 60]), np.repeat([1, 0], [60, 60])))
    assert "telling sources apart" in "\n".join(summary.lines(evaluation))
    drawn = patients((30, 30, 30, 30), 0.0)
    by_lot = dataclasses.replace(drawn, sources=np.random.default_rng(1).choice(["a", "b", "c"], 120).astype(object))
    source = evaluate(by_lot, NAMES, bootstrap=5).baselines.source
    assert source and not source.tells
    assert "the source alone" not in comparison(evaluate(by_lot, NAMES, bootstrap=5))


def test_a_model_that_only_knows_the_source_is_at_chance_within_sources() -> None:
    labels = np.repeat(np.arange(4), 40)
    generator = np.random.default_rng(2)
    ward = generator.random(160) < np.where(labels < 2, 0.2, 0.8)
    probabilities = np.where(ward[:, None], [0.1, 0.1, 0.4, 0.4], [0.4, 0.4, 0.1, 0.1])
    drawn = patients((40,) * 4, 1.0)
    sources = np.where(ward, "ward", "clinic").astype(object)
    evaluation = evaluate(dataclasses.replace(drawn, probabilities=probabilities, sources=sources), NAMES, bootstrap=5)
    source = evaluation.baselines.source
    assert evaluation.metrics["macro_auc"].low is not None and evaluation.metrics["macro_auc"].low > 0.55
    assert source and source.within
    assert source.within.value == pytest.approx(0.5)
    assert source.within.low is not None and source.within.low < 0.5


def test_an_area_within_sources_is_the_share_of_pairs_in_order() -> None:
    drawn = patients((12, 12, 12, 12), 1.0)
    sources = np.random.default_rng(3).choice(["a", "b"], 48).astype(object)
    drawn = dataclasses.replace(drawn, sources=sources)
    source = evaluate(drawn, NAMES, bootstrap=5).baselines.source
    areas = []
    for c in range(4):
        first, second = np.meshgrid(np.flatnonzero(drawn.labels == c), np.flatnonzero(drawn.labels != c))
        pairs = sources[first] == sources[second]
        score = drawn.probabilities[:, c]
        areas.append((score[first[pairs]] > score[second[pairs]]).mean())
    assert source and source.within
    assert source.within.value == pytest.approx(np.mean(areas))


def test_a_class_of_one_patient_neither_gives_its_source_away_nor_changes_the_model_within_sources() -> None:
    drawn = patients((30, 30, 30, 1), 1.0)
    sources = np.where(drawn.labels == 3, "ward", np.random.default_rng(1).choice(["clinic", "ward"], 91)).astype(object)
    evaluation = evaluate(dataclasses.replace(drawn, sources=sources), NAMES, bootstrap=5)
    without = evaluate(dataclasses.replace(drawn, sources=sources).part(drawn.labels != 3), NAMES, bootstrap=5)
    source, other = evaluation.baselines.source, without.baselines.source
    assert source and other and source.within and other.within
    assert source.class_name != "pneumocystis" and (source.classes, source.within_classes) == (3, 3)
    assert source.within.value == pytest.approx(other.within.value, abs=0.02), "one negative patient more"
    assert comparison(evaluation)["the model within sources"].startswith("macro AUC of 3 of 4 classes ")


def test_each_source_stands_beside_its_own_most_frequent_class() -> None:
    drawn = patients((10, 10, 40, 10), 1.0)
    sources = np.where(drawn.labels == 2, "clinic", "ward").astype(object)
    clinic, ward = evaluate(dataclasses.replace(drawn, sources=sources), NAMES, bootstrap=5).sources
    assert (clinic.majority, clinic.majority_accuracy) == ("viral", 1.0)
    assert (ward.majority, ward.majority_accuracy) == ("normal", pytest.approx(1 / 3))


def test_one_source_and_small_sources_give_nothing_away() -> None:
    assert evaluate(patients((10, 10, 10, 10), 1.0), NAMES, bootstrap=5).baselines.source is None
    drawn = patients((10, 10, 10, 10), 1.0)
    apart = dataclasses.replace(drawn, sources=np.arange(40).astype(str).astype(object))
    assert evaluate(apart, NAMES, bootstrap=5).baselines.source is None


def test_a_class_that_nobody_has_is_said_to_be_left_out_of_means() -> None:
    assert comparison(evaluate(patients((9, 9, 9, 0), 1.0), NAMES, bootstrap=5))["no patient has"].startswith("pneumocystis")
    assert "no patient has" not in comparison(evaluate(patients((9, 9, 9, 9), 1.0), NAMES, bootstrap=5))
