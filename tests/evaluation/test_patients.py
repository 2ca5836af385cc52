import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymed.errors import RunError, UserError
from raymed.evaluation.patients import Patients, softmax, to_patients


def strings(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


def two_patients(method: str = "mean", probabilities: object = ((0.9, 0.1), (0.4, 0.6), (0.4, 0.6), (0.2, 0.8))) -> Patients:
    return to_patients(
        np.array(probabilities),
        strings("b", "b", "b", "a"),
        np.array([0, 0, 0, 1]),
        strings("x", "y", "x", "x"),
        method,  # type: ignore[arg-type]
    )


def test_a_patient_is_the_mean_of_its_slices_sorted_by_id() -> None:
    patients = two_patients()
    assert patients.ids.tolist() == ["a", "b"]
    assert patients.labels.tolist() == [1, 0]
    assert patients.slices.tolist() == [1, 3]
    assert patients.sources.tolist() == ["x", "x + y"]
    np.testing.assert_allclose(patients.probabilities, [[0.2, 0.8], [1.7 / 3, 1.3 / 3]])
    assert patients.decisions.tolist() == [1, 0]


def test_votes_count_slices_and_not_confidence() -> None:
    assert two_patients("vote").decisions.tolist() == [1, 1]


def test_a_tied_vote_is_settled_by_the_mean_probability() -> None:
    patients = to_patients(
        np.array([[0.6, 0.4], [0.1, 0.9]]), strings("a", "a"), np.array([-1, -1]), strings("", ""), "vote"
    )
    assert patients.decisions.tolist() == [1]
    np.testing.assert_allclose(patients.probabilities, [[0.5, 0.5]], atol=1e-6)


@given(st.permutations(range(12)))
def test_the_order_of_slices_does_not_change_a_patient(order: list[int]) -> None:
    probabilities = softmax(np.random.default_rng(0).normal(size=(12, 3)))
    names, labels, sources = strings(*"abcabcabcabc"), np.tile([0, 1, 2], 4), strings(*"xy" * 6)
    one = to_patients(probabilities, names, labels, sources)
    other = to_patients(probabilities[order], names[order], labels[order], sources[order])
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-12)
    assert one.ids.tolist() == other.ids.tolist()
    assert one.sources.tolist() == other.sources.tolist()


def test_two_labels_of_one_patient_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="P7"):
        to_patients(np.full((2, 2), 0.5), strings("P7", "P7"), np.array([0, 1]), strings("", ""))


def test_output_that_is_not_a_number_is_not_averaged() -> None:
    with pytest.raises(RunError, match=r"1 of 4 slices.*patient b"):
        two_patients(probabilities=((0.9, 0.1), (np.nan, 0.6), (0.4, 0.6), (0.2, 0.8)))


def test_temperature_flattens_probabilities_and_keeps_their_order() -> None:
    logits = np.array([[3.0, 1.0, -200.0]], dtype=np.float32)
    np.testing.assert_allclose(softmax(logits).sum(), 1)
    np.testing.assert_allclose(softmax(logits, 2.0)[0, :2], 1 / (1 + np.exp([-1.0, 1.0])))
