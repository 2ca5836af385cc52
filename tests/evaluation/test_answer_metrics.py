"""Answers judged: exact match, token F1, and guards that a model passes only by looking."""

import numpy as np
import pytest

from raymed.evaluation.answer_metrics import (
    answer_guard,
    commonest_answers,
    exact_match,
    from_commonest,
    score_answers,
    token_f1,
)
from raymed.evaluation.text_metrics import Texts

PATIENTS = np.array([f"p{number:02d}" for number in range(20) for _ in range(2)])
TRUTH = ["Left.", "Yes.", "Right.", "No."] * 10


def test_case_and_punctuation_do_not_matter_and_order_does() -> None:
    references = ["The left lung.", "Yes", "左肺", "a b"]
    assert exact_match(references, ["the  LEFT lung", "yes!", "左 肺。", "b a"]).tolist() == [1, 1, 1, 0]


def test_token_f1_of_known_answers() -> None:
    got = token_f1(["a b c d", "a a b", "x", ""], ["a b", "a b b", "y", ""])
    assert got == pytest.approx([2 * 2 / 6, 2 * 2 / 6, 0, 1])


def test_the_commonest_answer_is_that_to_the_same_question() -> None:
    questions = ["Which?", "Which?", "Which?", "Is it?", "Is it?"]
    known = commonest_answers(questions, ["Left.", "Right.", "Right.", "Yes.", "Yes."])
    assert from_commonest(["Which?", "Is it?", "Why?"], known) == ["Right.", "Yes.", "Right."]


def test_patients_count_once() -> None:
    texts = Texts(np.array(["a", "a", "a", "b"]), ["x"] * 4, ["x", "x", "x", "y"])
    assert score_answers(texts).metrics["exact"].value == 0.5


@pytest.mark.parametrize(("right", "passes"), [(1.0, True), (0.5, False)])
def test_a_guard_is_passed_only_by_answers_that_are_surely_better(right, passes) -> None:
    draw = np.random.default_rng(0)
    answers = [text if draw.random() < right else "Other." for text in TRUTH]
    guessed = [text if draw.random() < 0.5 else "Other." for text in TRUTH]
    own, other = (score_answers(Texts(PATIENTS, TRUTH, given)) for given in (answers, guessed))
    guard = answer_guard("commonest answer", own, other, "the commonest answer's")
    assert guard.passed is passes
    assert guard.words.endswith(": better" if passes else "not surely better")
