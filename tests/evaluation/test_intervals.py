"""How often intervals hold the truth, for a perfectly calibrated model of Gaussian classes."""

import numpy as np
import pytest
from scipy.stats import binomtest, rankdata

from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import difference_interval, evaluate
from raymed.evaluation.patients import Patients, softmax
from raymed.evaluation.reliability import Calibration
from raymed.evaluation.scores import LARGEST_LOSS

NAMES = ("normal", "bacterial", "viral", "pneumocystis")
DRAWS = 150
NOISE = 0.03  # of a coverage of .95 in 150 draws, 1.7 standard errors


def gaussian_patients(
    labels: np.ndarray, separation: float, generator: np.random.Generator, classes: int = 4, equal: bool = False
) -> Patients:
    """Patients whose features are normal around their class, seen by a perfectly calibrated model.

    Args:
        equal: the labels were drawn from classes as frequent as each other; else they are as frequent as they are.
    """
    features = generator.normal(size=(len(labels), classes)) + separation * np.eye(classes)[labels]
    prior = 0.0 if equal else np.log(np.bincount(labels, minlength=classes).clip(1e-9) / len(labels))
    ids = np.array([f"P{number:05d}" for number in range(len(labels))], dtype=object)
    return Patients(
        ids, labels, softmax(separation * features + prior), np.ones(len(labels)), np.full(len(labels), "", object)
    )


def figures(patients: Patients, sizes: np.ndarray) -> dict[str, Estimate]:
    """Each figure with its interval, without what `evaluate` does besides."""
    classes, labels = len(sizes), patients.labels
    confusion = np.bincount(labels * classes + patients.decisions, minlength=classes**2).reshape(classes, classes)
    hits, misses = confusion.diagonal(), sizes - confusion.diagonal()
    alarms = confusion.sum(axis=0) - hits
    ranks = rankdata(patients.probabilities, axis=0)
    won = [ranks[labels == c, c].sum() - size * (size + 1) / 2 for c, size in enumerate(sizes)]
    areas = [intervals.auc(won[c] / (n * (len(labels) - n)), n, len(labels) - n) for c, n in enumerate(sizes.tolist())]
    return {
        "balanced_accuracy": intervals.mean_of_classes(hits / sizes, sizes),
        "macro_f1": intervals.mean_of_classes(2 * hits / (2 * hits + misses + alarms), sizes),
        "macro_auc": intervals.macro_auc(areas, confusion),
        "auc": areas[-1],
        "f1": intervals.f1(int(hits[-1]), int(misses[-1]), int(alarms[-1])),
    }


def coverage(per_class: tuple[int, ...], separation: float) -> dict[str, float]:
    """How often each interval holds the truth, which 40,000 patients show."""
    generator, sizes = np.random.default_rng(5), np.array(per_class)
    many = sizes * (40_000 // sizes.sum())
    truth = figures(gaussian_patients(np.repeat(range(len(sizes)), many), separation, generator, len(sizes)), many)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    seen = [figures(gaussian_patients(labels, separation, generator, len(sizes)), sizes) for _ in range(DRAWS)]
    return {name: float(np.mean([holds(one[name], truth[name].value) for one in seen])) for name in truth}


def holds(estimate: Estimate, value: float) -> bool:
    assert estimate.low is not None and estimate.high is not None and estimate.low < estimate.high
    return estimate.low <= value <= estimate.high


@pytest.mark.parametrize("separation", [1.0, 1.8, 2.8])
@pytest.mark.parametrize("per_class", [(5, 5, 5, 5), (12, 12, 12, 12), (50, 50, 50, 50)])
def test_figures_hold_the_truth_as_often_as_they_say_also_near_one(per_class: tuple[int, ...], separation: float) -> None:
    covered = coverage(per_class, separation)
    assert min(covered.values()) >= 0.93 - NOISE, covered


def test_figures_of_classes_with_one_and_three_patients_keep_to_their_floor() -> None:
    covered = coverage((20, 15, 10, 3), 2.8)
    assert min(covered.values()) >= 0.90 - NOISE, covered
    assert covered["auc"] >= 0.93 - NOISE  # of the class of three
    covered = coverage((8, 7, 4, 1), 2.8)
    assert min(covered.values()) >= 0.85 - NOISE, covered


def test_twenty_patients_in_perfect_order_are_not_claimed_to_prove_it() -> None:
    labels = np.repeat(np.arange(4), 5)
    patients = gaussian_patients(labels, 9.0, np.random.default_rng(0))
    evaluation = evaluate(patients, NAMES, bootstrap=50)
    for name in ("macro_auc", "macro_f1", "balanced_accuracy", "accuracy"):
        estimate = evaluation.metrics[name]
        assert estimate.value == estimate.high == 1.0
        assert estimate.low is not None and 0.7 < estimate.low < 0.95, name
    assert all(one.auc and one.auc.low and one.auc.low < 0.9 for one in evaluation.classes)


@pytest.mark.parametrize(("patients", "floor"), [(20, 0.88), (48, 0.92), (200, 0.93)])
def test_the_loss_holds_the_truth_also_where_it_is_skewed(patients: int, floor: float) -> None:
    generator = np.random.default_rng(3)
    truth = losses(100_000, generator).mean()
    held = 0
    for seed in range(DRAWS):
        estimate = intervals.mean(losses(patients, generator), 400, seed, 0.0, LARGEST_LOSS)
        held += holds(estimate, truth)
    assert held / DRAWS >= floor - NOISE


def losses(count: int, generator: np.random.Generator) -> np.ndarray:
    patients = gaussian_patients(generator.integers(4, size=count), 2.8, generator, equal=True)
    return -np.log(patients.probabilities[np.arange(count), patients.labels])


def test_a_paired_difference_holds_the_truth() -> None:
    generator = np.random.default_rng(4)

    def pair(count: int) -> tuple[Patients, Patients]:
        good = gaussian_patients(generator.integers(4, size=count), 1.8, generator, equal=True)
        worse = softmax(np.log(good.probabilities) * 0.6)
        return Patients(good.ids, good.labels, worse, good.slices, good.sources), good

    truth = difference_interval(*pair(100_000), bootstrap=2).value
    held = 0
    for seed in range(DRAWS):
        estimate = difference_interval(*pair(48), bootstrap=400, seed=seed)
        held += holds(estimate, truth)
    assert held / DRAWS >= 0.93 - NOISE


def calibrations(per_class: int, resamples: int) -> list[Calibration]:
    """Of a perfectly calibrated model."""
    generator = np.random.default_rng(6)
    drawn = [gaussian_patients(generator.integers(4, size=4 * per_class), 1.8, generator, equal=True) for _ in range(DRAWS)]
    return [Calibration.of(one.labels, one.probabilities, resamples, seed) for seed, one in enumerate(drawn)]


def test_the_calibration_slope_and_the_gap_of_a_perfect_model_hold_one_and_zero() -> None:
    drawn = calibrations(12, 2)
    slopes = [one.slope for one in drawn if one.slope is not None]
    assert len(slopes) > 0.9 * DRAWS
    assert np.mean([holds(one, 1) for one in slopes]) >= 0.93 - NOISE
    assert np.mean([holds(one.gap, 0) for one in drawn]) >= 0.93 - NOISE


def test_a_perfect_models_calibration_error_is_rarely_called_more_than_chance_and_a_bad_ones_is() -> None:
    for per_class in (5, 30):
        drawn = calibrations(per_class, 200)
        assert np.mean([one.beyond_chance for one in drawn]) <= 0.05 + NOISE
        assert np.mean([one.error for one in drawn]) == pytest.approx(np.mean([one.perfect for one in drawn]), rel=0.1)
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(4), 60)
    good = gaussian_patients(labels, 1.8, generator)
    sure = Patients(good.ids, labels, softmax(np.log(good.probabilities) * 3), good.slices, good.sources)
    calibration = evaluate(sure, NAMES, bootstrap=200).calibration
    assert calibration and calibration.beyond_chance
    assert calibration.slope and calibration.slope.high and calibration.slope.high < 1
    assert calibration.gap.high and calibration.gap.high < 0


def test_wilsons_interval_equals_scipys() -> None:
    for count, of in ((0, 7), (3, 9), (20, 20), (117, 250)):
        expected, mine = binomtest(count, of).proportion_ci(method="wilson"), intervals.wilson(count / of, of)
        assert (mine.low, mine.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_area_of_one_has_the_interval_that_newcombes_formula_gives() -> None:
    for area, positive, negative in ((1.0, 5, 15), (0.8, 12, 36), (0.5, 40, 9)):
        estimate = intervals.auc(area, positive, negative)
        for end in (estimate.low, estimate.high):
            assert end is not None
            many = (positive + negative) / 2 - 1
            spread = end * (1 - end) * (1 + many * (1 - end) / (2 - end) + many * end / (1 + end)) / (positive * negative)
            assert end in (0.0, 1.0) or abs(area - end) == pytest.approx(1.959964 * spread**0.5, rel=1e-4)
    assert intervals.auc(1.0, 5, 15).low < 0.9
    assert intervals.auc(1.0, 5, 15).high == 1.0


def test_folds_that_share_their_training_patients_are_not_taken_for_independent_ones() -> None:
    values = [0.80, 0.84, 0.78, 0.86, 0.82]
    estimate = intervals.over_folds(values)
    naive = 2.776 * np.std(values, ddof=1) / 5**0.5  # Student's t of five independent figures
    assert estimate.low is not None
    assert (estimate.value - estimate.low) / naive == pytest.approx((1 + 5 / 4) ** 0.5, rel=1e-3)  # Nadeau & Bengio 2003
    assert intervals.over_folds([0.8]).low is None


def test_two_classes_share_all_their_errors_so_that_their_macro_area_is_as_unsure_as_each() -> None:
    area = intervals.auc(0.9, 10, 10)
    both = intervals.macro_auc([area, area], np.array([[8, 2], [3, 7]]))
    assert (both.low, both.high) == pytest.approx((area.low, area.high))
    four = intervals.macro_auc([area] * 4, np.diag([10] * 4))
    assert four.low is not None and area.low is not None and four.low > area.low


def test_the_interval_of_a_difference_of_shares_holds_the_truth_where_two_models_mostly_agree() -> None:
    """Both right for 60 %, one alone for 15 %, the other alone for 5 %: a difference of 10 points."""
    draw, held = np.random.default_rng(0), 0
    for _ in range(600):
        kind = draw.choice(4, 40, p=[0.6, 0.15, 0.05, 0.2])
        estimate = intervals.difference_of_shares((kind == 0) | (kind == 1), (kind == 0) | (kind == 2))
        assert estimate.low is not None and estimate.high is not None
        held += estimate.low <= 0.1 <= estimate.high
    assert 0.93 <= held / 600 <= 0.99


def test_the_difference_of_shares_is_turned_around_with_the_models() -> None:
    one, other = np.array([True] * 9 + [False] * 3), np.array([True] * 6 + [False] * 6)
    there, back = intervals.difference_of_shares(one, other), intervals.difference_of_shares(other, one)
    assert there.value == pytest.approx(0.25) and there.low == pytest.approx(-(back.high or 0))
    same = intervals.difference_of_shares(one, one)
    assert same.value == 0 and (same.low or 0) <= 0 <= (same.high or 0)


def test_patients_who_all_differ_by_the_same_are_no_reason_to_say_nothing() -> None:
    """A model that is right where the other is wrong, for everybody: how many others there may be bounds the difference."""
    everybody = intervals.mean(np.ones(20), 200, 0, -1.0, 1.0)
    assert everybody.low is not None and 0.6 < everybody.low < 1 and everybody.high == 1
    nobody = intervals.mean(np.zeros(20), 200, 0, -1.0, 1.0)
    assert nobody.low is not None and nobody.high is not None and nobody.low < 0 < nobody.high
    assert intervals.mean(np.ones(4), 200, 0, -1.0, 1.0).low is None
    assert intervals.mean(np.ones(20), 200, 0).low is None, "what has no bounds may be anything in others"
    labels = np.arange(20) % 4
    ids, one, nowhere = labels.astype(str) + np.arange(20).astype(str), np.ones(20, np.int64), np.full(20, "", object)
    right, wrong = (Patients(ids, labels, np.eye(4)[(labels + by) % 4], one, nowhere) for by in (0, 1))
    difference = difference_interval(wrong, right)
    assert difference.low is not None and difference.low > 0, "surely worse"


def test_values_that_are_all_the_same_hold_the_truth_where_few_have_another() -> None:
    """One patient in fifty is wrong: most groups of twenty have none."""
    generator, held = np.random.default_rng(8), 0
    for seed in range(DRAWS):
        held += holds(intervals.mean((generator.random(20) > 0.02).astype(float), 200, seed, 0.0, 1.0), 0.98)
    assert held / DRAWS >= 0.93 - NOISE


@pytest.mark.parametrize("others", [1, 2])
def test_few_who_differ_among_many_who_hardly_do_make_no_interval_without_an_end(others: int) -> None:
    """Resamples without them have next to no spread, and a bootstrap-t that divides by it."""
    values = np.random.default_rng(others).normal(0, 1e-4, 100)
    values[:others] = 1
    estimate = intervals.mean(values, 400, 0, -10.0, 10.0)
    assert estimate.low is not None and estimate.high is not None and -1 < estimate.low < 0 < estimate.high < 1
    assert intervals.mean(values, 400, 0).interval() == "not estimable (nearly all of 100 with the same value)"
    for more in (4, 10):
        values[:more] = 1
        made = intervals.mean(values, 400, 0)
        assert made.low is not None and made.high is not None
        assert 0 < made.low < more / 100 < made.high < 3 * more / 100, "some more of them make one"
    some = np.array([1.0] * 3 + [2 / 3] * 13)
    assert (intervals.mean(some, 400, 0, -1.0, 1.0).low or 0) > 0.6, "nobody is below two thirds"
