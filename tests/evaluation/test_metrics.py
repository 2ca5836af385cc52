import dataclasses
import json
import math

import numpy as np
import pytest
from calls import calls_of
from sklearn import metrics as reference

from raymed.errors import RunError, UserError
from raymed.evaluation import summary
from raymed.evaluation.metrics import difference_interval, evaluate, judge_patients
from raymed.evaluation.patients import Patients, softmax, to_patients
from raymed.evaluation.scores import Scores, overall

NAMES = ("normal", "bacterial", "viral", "pneumocystis")


def some_patients(per_class: tuple[int, ...] = (30, 25, 20, 15), seed: int = 0, signal: float = 1.5) -> Patients:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(per_class)), per_class)
    logits = generator.normal(size=(len(labels), len(per_class)))
    logits[np.arange(len(labels)), labels] += signal
    ids = np.array([f"P{i:03d}" for i in range(len(labels))], dtype=object)
    sources = np.array(["east", "west"], dtype=object)[np.arange(len(labels)) % 2]
    return Patients(ids, labels, softmax(logits), np.full(len(labels), 16), sources)


def test_each_figure_equals_scikit_learns() -> None:
    patients = some_patients()
    evaluation = evaluate(patients, NAMES, bootstrap=10)
    labels, probabilities, decisions = patients.labels, patients.probabilities, patients.decisions
    expected = {
        "loss": reference.log_loss(labels, probabilities),
        "accuracy": reference.accuracy_score(labels, decisions),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, decisions),
        "macro_f1": reference.f1_score(labels, decisions, average="macro"),
        "macro_auc": reference.roc_auc_score(labels, probabilities, multi_class="ovr"),
    }
    for name, value in expected.items():
        assert evaluation.metrics[name].value == pytest.approx(value, abs=1e-12), name
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, decisions)
    for c, figures in enumerate(evaluation.classes):
        assert figures.precision and figures.sensitivity and figures.f1 and figures.auc and figures.specificity
        assert (figures.precision.value, figures.sensitivity.value) == pytest.approx((precision[c], recall[c]))
        assert (figures.f1.value, figures.support) == (pytest.approx(f1[c]), support[c])
        assert figures.auc.value == pytest.approx(reference.roc_auc_score(labels == c, probabilities[:, c]))
        assert figures.specificity.value == pytest.approx(reference.recall_score(labels != c, decisions != c))
    assert np.array_equal(evaluation.confusion, reference.confusion_matrix(labels, decisions))


def test_equal_scores_count_half_in_the_area_as_in_scikit_learn() -> None:
    patients = some_patients((9, 8, 7, 3))
    probabilities = np.round(patients.probabilities, 1) + 1e-3
    scores = Scores.of(patients.labels, probabilities)
    for c in range(4):
        assert scores.auc[c] == pytest.approx(reference.roc_auc_score(patients.labels == c, probabilities[:, c]))
    np.testing.assert_allclose(scores.f1, reference.f1_score(patients.labels, probabilities.argmax(1), average=None))


def test_calibration_error_by_hand() -> None:
    # Two bins: 0.95 confident and half right; 0.65 confident and always right.
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.35, 0.65]])
    labels = np.array([0, 1, 0, 1])
    ece = overall(labels, probabilities)["ece"]
    assert ece == pytest.approx((2 * 0.45 + 2 * 0.35) / 4)
    patients = Patients(np.array(list("abcd"), dtype=object), labels, probabilities, np.ones(4), np.full(4, "", object))
    calibration = evaluate(patients, ("no", "yes"), bootstrap=2).calibration
    assert calibration and calibration.error == pytest.approx(ece)
    bins = calibration.bins
    assert [(found.patients, found.accuracy) for found in bins] == [(2, 1.0), (2, 0.5)]
    assert all(found.low < found.confidence <= found.high for found in bins)


def test_a_certain_and_wrong_patient_costs_a_finite_loss() -> None:
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0]])
    columns = columns_of(["a", "b"], [1, 1])
    assert judge_patients(logits, columns, ("no", "yes"))["val_loss"] == pytest.approx(-math.log(1e-7) / 2)


def columns_of(patients: list[str], labels: list[int]) -> dict[str, np.ndarray]:
    return {
        "patient": np.array(patients, dtype=object),
        "label": np.array(labels),
        "source": np.full(len(labels), "", dtype=object),
    }


def test_val_loss_is_the_loss_of_the_averaged_probability_and_not_of_slices() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7]])
    judged = judge_patients(np.log(probabilities), columns_of(["a", "a", "b"], [0, 0, 1]), ("no", "yes"))
    assert judged["val_loss"] == pytest.approx(-(math.log(0.5) + math.log(0.7)) / 2)
    assert judged["slice_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.7)) / 3)
    assert judged["accuracy"] == 1.0
    assert judged["slice_accuracy"] == pytest.approx(2 / 3)
    assert (judged["sensitivity_no"], judged["specificity_no"]) == (1.0, 1.0)


def test_figures_that_cannot_be_formed_are_absent_and_none_is_nan() -> None:
    judged = judge_patients(np.zeros((3, 3)), columns_of(["a", "b", "c"], [0, 0, 0]), ("x", "y", "z"))
    assert "macro_auc" not in judged
    assert "sensitivity_y" not in judged
    assert "specificity_x" not in judged
    assert judged["balanced_accuracy"] == 1.0
    assert all(math.isfinite(value) for value in judged.values())
    patients = some_patients((6, 5, 0, 2))
    evaluation = evaluate(patients, NAMES, bootstrap=50)
    assert evaluation.classes[2].sensitivity is None
    assert evaluation.classes[2].auc is None
    assert [curve.name for curve in evaluation.roc] == ["normal", "bacterial", "pneumocystis"]
    json.dumps(dataclasses.asdict(evaluation), allow_nan=False)
    assert all(math.isfinite(value) for value in evaluation.flat().values())


def test_classes_of_fewer_than_ten_patients_are_marked_and_left_out_of_a_second_macro_figure() -> None:
    patients = some_patients((20, 20, 20, 9))
    evaluation = evaluate(patients, NAMES, bootstrap=20)
    assert [figures.rare for figures in evaluation.classes] == [False, False, False, True]
    f1 = [figures.f1.value for figures in evaluation.classes if figures.f1]
    assert evaluation.metrics["macro_f1"].value == pytest.approx(np.mean(f1))
    assert evaluation.metrics["macro_f1_without_rare"].value == pytest.approx(np.mean(f1[:3]))
    assert "macro_f1_without_rare" not in evaluate(some_patients(), NAMES, bootstrap=2).metrics


def test_intervals_hold_their_value_and_narrow_with_more_patients() -> None:
    small, large = (evaluate(some_patients((n,) * 4), NAMES, bootstrap=300).metrics for n in (10, 160))
    for name in ("loss", "accuracy", "macro_f1", "macro_auc"):
        for metrics in (small, large):
            assert metrics[name].low <= metrics[name].value <= metrics[name].high
        assert large[name].high - large[name].low < 0.5 * (small[name].high - small[name].low), name


def test_a_perfect_small_class_is_not_claimed_to_be_certain() -> None:
    figures = evaluate(some_patients((8, 8, 8, 8), signal=50.0), NAMES, bootstrap=50).classes[0]
    assert figures.sensitivity
    assert figures.sensitivity.value == figures.sensitivity.high == 1.0
    assert figures.sensitivity.low == pytest.approx(0.6756, abs=1e-4)  # Wilson, 8 of 8


def test_the_same_seed_gives_the_same_intervals() -> None:
    assert evaluate(some_patients(), NAMES, 50, seed=1) == evaluate(some_patients(), NAMES, 50, seed=1)
    assert evaluate(some_patients(), NAMES, 50, seed=1) != evaluate(some_patients(), NAMES, 50, seed=2)


def test_sources_are_judged_apart() -> None:
    patients = some_patients()
    east, west = evaluate(patients, NAMES, bootstrap=5).sources
    assert (east.name, west.name, east.patients + west.patients) == ("east", "west", len(patients.ids))
    rows = patients.sources == "east"
    expected = reference.accuracy_score(patients.labels[rows], patients.decisions[rows])
    assert east.metrics["accuracy"].value == pytest.approx(expected)


def test_a_difference_that_patients_cannot_tell_holds_zero_and_a_real_one_does_not() -> None:
    good, same, bad = some_patients(signal=3.0), some_patients(signal=3.0, seed=1), some_patients(signal=0.0)
    tie, gap = difference_interval(same, good), difference_interval(bad, good)
    assert tie.low < 0 < tie.high
    assert gap.low > 0
    assert gap.value == pytest.approx(
        evaluate(bad, NAMES, 2).metrics["loss"].value - evaluate(good, NAMES, 2).metrics["loss"].value
    )
    with pytest.raises(UserError, match="same patients"):
        difference_interval(good, some_patients((3, 3, 3, 3)))


def test_unlabelled_patients_and_diverged_models_are_not_judged() -> None:
    with pytest.raises(UserError, match=r"no label.*: b"):
        judge_patients(np.zeros((2, 2)), columns_of(["a", "b"], [0, -1]), ("no", "yes"))
    with pytest.raises(RunError, match="diverged"):
        judge_patients(np.array([[np.nan, 0.0]]), columns_of(["a"], [0]), ("no", "yes"))
    with pytest.raises(UserError, match="no patient"):
        judge_patients(np.zeros((0, 2)), columns_of([], []), ("no", "yes"))


def test_a_thousand_resamples_of_five_hundred_patients_are_no_more_calls_than_ten_of_them() -> None:
    patients = some_patients((125,) * 4)
    evaluate(patients, NAMES, bootstrap=1)  # what is imported and cached
    few, many = (calls_of(lambda count=count: evaluate(patients, NAMES, bootstrap=count)) for count in (10, 1000))  # type: ignore[misc]
    assert many < 1.1 * few, "a loop over resamples takes a minute"


def test_what_one_patient_cannot_show_has_no_interval_and_says_so() -> None:
    one = evaluate(some_patients((1, 0, 0, 0)), NAMES, bootstrap=50)
    loss = one.metrics["loss"]
    assert str(loss) == f"{loss.value:.3f} not estimable (only 1)"
    assert "loss_low" not in one.flat() and "loss" in one.flat()
    assert one.metrics["accuracy"].low is not None  # a share: Wilson's interval holds of one patient, too
    few = evaluate(some_patients((1, 1, 1, 1)), NAMES, bootstrap=50)
    assert "not estimable (only 4)" in str(few.metrics["loss"])
    mixed = evaluate(some_patients((9, 9, 9, 1)), NAMES, bootstrap=50)
    assert mixed.metrics["loss"].low is not None and mixed.classes[0].auc and mixed.classes[0].auc.low is not None
    for figure in (mixed.classes[3].auc, mixed.classes[3].f1):
        assert "not estimable (only 1)" in str(figure)


def test_slices_that_vote_are_judged_by_their_decisions_alone() -> None:
    """A share of votes is no probability: as one, its loss would be a third too high."""
    slices = softmax(np.random.default_rng(0).normal(size=(160, 4)) + 2 * np.eye(4)[np.repeat(np.arange(4), 40)])
    owners, labels = np.repeat(np.arange(40), 4).astype(str), np.repeat(np.arange(4), 40)
    patients = to_patients(slices, owners, labels, np.full(160, ""), "vote")
    evaluation = evaluate(patients, NAMES, bootstrap=50)
    assert list(evaluation.metrics) == ["accuracy", "balanced_accuracy", "macro_f1"]
    assert evaluation.calibration is None and evaluation.roc == ()
    assert all(figures.auc is None and figures.sensitivity for figures in evaluation.classes)
    assert evaluation.metrics["accuracy"].value == reference.accuracy_score(patients.labels, patients.decisions)
    assert "loss" not in "\n".join(summary.lines(evaluation))


def test_a_source_of_fewer_than_ten_patients_is_marked() -> None:
    patients = some_patients()
    sources = np.array(["east"] * 85 + ["west"] * 5, dtype=object)
    evaluation = evaluate(dataclasses.replace(patients, sources=sources), NAMES, bootstrap=5)
    assert [source.rare for source in evaluation.sources] == [False, True]
    assert "west*: 5 patients" in summary.lines(evaluation)


def test_every_figure_on_a_terminal_stands_apart_from_its_name() -> None:
    """Also the longest, which only rare classes bring."""
    evaluation = evaluate(some_patients((30, 25, 20, 3)), NAMES, bootstrap=10)
    longest = max(evaluation.metrics, key=len)
    assert longest == "balanced_accuracy_without_rare"
    figures = summary.lines(evaluation)[: len(evaluation.metrics)]
    assert [line.split()[0] for line in figures] == list(evaluation.metrics)
