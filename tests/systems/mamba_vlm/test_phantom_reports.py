"""Reports on phantoms: the picture decides them, and a volume of another side gets another report."""

import re
from collections import Counter

import numpy as np
import pytest

from raymed.systems.mamba_vlm.options import PHANTOMS
from raymed.systems.mamba_vlm.phantoms import CLEAR, PROMPTS, PhantomReport, phantom_report
from raymed.systems.mamba_vlm.tiny_language_model import REPORTS, byte_tokenizer


@pytest.fixture(scope="module")
def patients() -> list[PhantomReport]:
    return [phantom_report(PHANTOMS, number) for number in range(16)]


def test_the_side_that_is_reported_is_the_side_of_the_mask_on_the_largest_slice(patients: list[PhantomReport]) -> None:
    for patient in patients:
        if patient.mask is None:
            assert patient.answer == CLEAR
            continue
        plane = patient.mask[patient.mask.sum(axis=(1, 2)).argmax()]
        assert plane.any()
        share = plane[:, plane.shape[1] // 2 :].sum() / plane.sum()  # the patient's left is on the right of the picture
        side = "left lung" if share > 0.85 else "right lung" if share < 0.15 else "both lungs"
        near = min(abs(share - 0.85), abs(share - 0.15)) < 0.05  # the body is not quite in the middle of the picture
        assert side in patient.answer or near, (share, patient.answer)


def test_the_disease_can_be_seen_where_the_mask_marks_it(patients: list[PhantomReport]) -> None:
    for patient in patients:
        if patient.mask is not None:
            at = patient.mask.sum(axis=(1, 2)).argmax()
            plane, marked = patient.volume[at], patient.mask[at]
            assert plane[marked].mean() > plane.min() + 150, patient.answer


def test_reports_differ_in_class_side_height_and_extent(patients: list[PhantomReport]) -> None:
    answers = Counter(patient.answer for patient in patients)
    assert len(answers) >= 9 and answers[CLEAR] == 4
    for words in (("left lung", "right lung", "both lungs"), ("upper", "middle", "lower"), ("small", "large")):
        assert all(any(word in answer for answer in answers) for word in words), answers


def test_a_patient_does_not_depend_on_how_many_there_are(patients: list[PhantomReport]) -> None:
    again = phantom_report(PHANTOMS, 5)
    assert again.answer == patients[5].answer and np.array_equal(again.volume, patients[5].volume)


def test_the_tiny_language_model_reads_a_word_of_a_report_at_once_and_loses_no_byte(patients: list[PhantomReport]) -> None:
    tokenizer, again = byte_tokenizer(REPORTS), byte_tokenizer(REPORTS)
    assert tokenizer.get_vocab() == again.get_vocab() and tokenizer.eos_token_id == 0
    for text in (*PROMPTS, *(patient.answer for patient in patients)):
        tokens = tokenizer(text)["input_ids"]
        assert len(tokens) == len(re.findall(r"\w+|[^\w\s]", text)), tokenizer.convert_ids_to_tokens(tokens)
    for text in ("右肺上叶空洞。", "é\n\x00"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
