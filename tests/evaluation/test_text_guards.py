"""Guards of a model of texts: it fails each of them exactly where it deserves to."""

import numpy as np
import pytest

from raymed.data.labels import LabelTable
from raymed.errors import UserError
from raymed.evaluation.findings import Findings
from raymed.evaluation.text_guards import CaptionLosses, commonest_guard, shuffle_guard, simple_guard, swap_patients
from raymed.evaluation.text_metrics import Texts, score_texts

PATIENTS = np.array([f"P{n:02d}" for n in range(20)], dtype=object)
CHEST = Findings(LabelTable.open("chest_findings"))


def losses(nats: np.ndarray, patients: np.ndarray = PATIENTS) -> CaptionLosses:
    tokens = np.full(len(patients), 10)
    return CaptionLosses(patients, nats * tokens, tokens)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(1.0, 0.2, len(PATIENTS))


@pytest.mark.parametrize("counts", [[1] * 9, [3, 2, 1], [4, 1, 1, 2], [1, 1]])
def test_every_picture_goes_to_another_patient_and_none_is_left_out(counts: list[int]) -> None:
    patients = np.repeat([f"P{n}" for n in range(len(counts))], counts)
    swapped = swap_patients(patients, seed=3)
    assert sorted(swapped) == list(range(len(patients)))
    assert (patients[swapped] != patients).all()


def test_patients_of_whom_one_has_most_pictures_cannot_be_swapped() -> None:
    with pytest.raises(UserError, match="more than half"):
        swap_patients(np.array(["A", "A", "B"]), 0)


def test_a_model_whose_loss_does_not_rise_does_not_look_at_the_picture() -> None:
    own = noise(0)
    blind, seeing = (
        shuffle_guard(losses(own), losses(own + noise(1) * 0.01 - 0.01)),
        shuffle_guard(losses(own), losses(own * 2)),
    )
    assert not blind.passed and "does not surely look" in blind.words
    assert seeing.passed and seeing.ratio == pytest.approx(2.0) and "(2.00x)" in seeing.words


def test_one_report_for_everybody_does_not_pass_and_the_right_ones_do() -> None:
    references = ["nodule on the left" if n % 2 else "effusion on the right" for n in range(20)]
    same = score_texts(Texts(PATIENTS, references, ["nodule on the left"] * 20), CHEST)
    right = score_texts(Texts(PATIENTS, references, references), CHEST)
    assert not commonest_guard(same, same).passed
    assert commonest_guard(right, same).passed


def test_a_model_that_loses_to_the_simple_one_is_called_worse() -> None:
    own = noise(0)
    worse = simple_guard(losses(own + 0.5 + noise(3) * 0.1), losses(own), "linear bridge")
    assert not worse.passed and "worse than the linear bridge" in worse.words
    assert simple_guard(losses(own), losses(own + 0.5 + noise(3) * 0.1), "linear bridge").passed
    with pytest.raises(UserError, match="judged on other patients"):
        simple_guard(losses(own), losses(own[:2], PATIENTS[:2]), "linear bridge")


def test_a_patients_loss_is_per_token_over_all_of_the_patients_texts() -> None:
    several = CaptionLosses(np.array(["A", "A", "B"], dtype=object), np.array([30.0, 0.0, 5.0]), np.array([10, 5, 5]))
    assert several.by_patient.tolist() == [2.0, 1.0]
