import numpy as np
import pytest

from raymed.errors import UserError
from raymed.evaluation.calibration import fit_temperature


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
    assert fit_temperature(logits * factor, patients, labels) == pytest.approx(factor, rel=0.1)


def test_a_patient_counts_once_however_many_slices_it_has() -> None:
    logits, patients, labels = calibrated_patients(200)
    many, owners, own = calibrated_patients(200, slices=7)
    assert fit_temperature(many * 3, owners, own) == pytest.approx(fit_temperature(logits * 3, patients, labels), rel=1e-3)


def test_the_fewer_the_patients_the_closer_the_temperature_stays_to_1() -> None:
    logits, _, labels = calibrated_patients(10)
    few, some, many = (
        fit_temperature(np.tile(logits * 4, (times, 1)), np.arange(10 * times).astype(str), np.tile(labels, times))
        for times in (1, 10, 100)
    )
    assert 1 < few < some < many


@pytest.mark.parametrize("count", [8, 40, 400])
def test_a_perfect_validation_set_makes_the_model_surer_but_never_certain(count: int) -> None:
    labels = np.arange(count) % 4
    patients = np.array([f"P{i}" for i in range(count)], dtype=object)
    assert 0.2 < fit_temperature(np.eye(4)[labels] * 3, patients, labels) < 1


def test_unlabelled_slices_are_refused() -> None:
    logits, patients, labels = calibrated_patients(30)
    labels[3] = -1
    with pytest.raises(UserError, match="1 slices have no label"):
        fit_temperature(logits, patients, labels)
