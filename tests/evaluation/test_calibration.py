import numpy as np
import pytest

from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature, fit_temperature
from raymed.evaluation.patients import softmax
from raymed.evaluation.scores import losses


def calibrated_patients(count: int, slices: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels drawn from the softmax of the logits: their best temperature is 1, but for chance."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2.0, size=(count, 4))
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    patients = np.array([f"P{i}" for i in range(count)], dtype=object)
    return np.repeat(logits, slices, axis=0), np.repeat(patients, slices), np.repeat(labels, slices)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_the_factor_by_which_logits_are_too_large_is_found(factor: float) -> None:
    logits, patients, labels = calibrated_patients(4000)
    temperature = fit_temperature(logits * factor, patients, labels)
    assert temperature.one == pytest.approx(factor, rel=0.1)
    assert temperature.many == pytest.approx(temperature.one, rel=1e-3), (
        "nobody has several slices, so nothing is known of them"
    )


def test_a_patient_counts_once_however_many_slices_it_has() -> None:
    logits, patients, labels = calibrated_patients(200)
    many, owners, own = calibrated_patients(200, slices=7)
    once, seven = fit_temperature(logits * 3, patients, labels), fit_temperature(many * 3, owners, own)
    assert [seven.one, seven.many] == pytest.approx([once.one, once.many], rel=0.03)


def test_the_fewer_the_patients_the_closer_the_temperature_stays_to_1() -> None:
    logits, _, labels = calibrated_patients(10)
    few, some, many = (
        fit_temperature(np.tile(logits * 4, (times, 1)), np.arange(10 * times).astype(str), np.tile(labels, times)).one
        for times in (1, 10, 100)
    )
    assert 1 < few < some < many


@pytest.mark.parametrize("count", [8, 40, 400])
def test_a_perfect_validation_set_makes_the_model_surer_but_never_certain(count: int) -> None:
    labels = np.arange(count) % 4
    patients = np.array([f"P{i}" for i in range(count)], dtype=object)
    assert 0.2 < fit_temperature(np.eye(4)[labels] * 3, patients, labels).one < 1


def test_unlabelled_slices_are_refused() -> None:
    logits, patients, labels = calibrated_patients(30)
    labels[3] = -1
    with pytest.raises(UserError, match="1 slices have no label"):
        fit_temperature(logits, patients, labels)


def correlated(patients: int, slices: int, correlation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [patients] and logits [patients, slices, classes]: each slice alone is perfectly calibrated, and slices of a
    patient err together."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=patients)
    shared = generator.normal(size=(patients, 1, 4)) * correlation**0.5
    own = generator.normal(size=(patients, slices, 4)) * (1 - correlation) ** 0.5
    return labels, np.eye(4)[labels][:, None] + shared + own


def fitted(labels: np.ndarray, logits: np.ndarray) -> Temperature:
    slices = logits.shape[1]
    return fit_temperature(
        logits.reshape(-1, 4), np.repeat(np.arange(len(labels)).astype(str), slices), labels.repeat(slices)
    )


def loss(labels: np.ndarray, logits: np.ndarray, temperature: Temperature) -> float:
    pooled = softmax(logits.reshape(-1, 4) / temperature.logits).reshape(logits.shape).mean(axis=1)
    return float(losses(labels, temperature.scale(pooled, np.full(len(labels), logits.shape[1]))).mean())


@pytest.mark.parametrize("correlation", [0.2, 0.5, 0.9])
def test_a_temperature_of_sixteen_slices_does_no_harm_to_a_patient_with_one_and_loses_nothing_at_sixteen(
    correlation: float,
) -> None:
    """Sharpened by one number for all, as of sixteen, a single slice would cost a third more than unscaled."""
    labels, logits = correlated(3000, 32, correlation, 1)
    few, many, one_number = [], [], []
    for seed in range(3):
        temperature = fitted(*correlated(200, 16, correlation, 10 + seed))
        few.append(loss(labels, logits[:, :1], temperature))
        many.append([loss(labels, logits[:, :count], temperature) for count in (4, 16, 32)])
        sharpest = Temperature(float(temperature.of(16)), float(temperature.of(16)))
        one_number.append(loss(labels, logits[:, :1], sharpest))
    plain = [loss(labels, logits[:, :count], Temperature()) for count in (1, 4, 16, 32)]
    assert np.mean(few) < plain[0] + 0.01
    assert (np.mean(many, axis=0) < np.array(plain[1:]) + 0.005).all()
    if correlation == 0.5:
        assert np.mean(one_number) > 1.15 * plain[0]
        assert np.mean(many, axis=0)[1] < plain[2] - 0.08, "what scaling gains where there are sixteen"
        best = min(loss(labels, logits[:, :16], Temperature(each, each)) for each in np.linspace(0.3, 1.2, 46))
        assert np.mean(many, axis=0)[1] < best + 0.01, "no number of its own for sixteen would be better"


def test_scaling_changes_no_decision_and_leaves_votes_alone() -> None:
    labels, logits = correlated(200, 5, 0.3, 0)
    columns = {
        "patient": np.repeat(np.arange(200).astype(str), 5),
        "label": labels.repeat(5),
        "source": np.full(1000, "", object),
    }
    sharp, plain = (each.pool(logits.reshape(-1, 4), columns) for each in (Temperature(0.9, 0.3), Temperature()))
    assert np.array_equal(sharp.decisions, plain.decisions)
    assert not np.allclose(sharp.probabilities, plain.probabilities)
    voted = Temperature(0.9, 0.3).pool(logits.reshape(-1, 4), columns, "vote")
    assert np.array_equal(voted.probabilities, Temperature().pool(logits.reshape(-1, 4), columns, "vote").probabilities)
