"""Answers to questions about pictures, judged per patient: exact match and token F1, and guards against guessing.

Words are compared without letter case and punctuation; a Chinese character counts as a word.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.text_guards import Guard
from raymed.evaluation.text_metrics import RESAMPLES, Texts, bleu, commonest, per_patient, rouge_l, words


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """How good answers are.

    Attributes:
        by_patient: of each figure, the mean over each patient's answers, by patient id.
        metrics: ``exact`` (share of answers that are the reference's words), ``token_f1``, ``bleu`` and ``rouge_l``: means
            over patients with their 95 % intervals.
    """

    by_patient: dict[str, np.ndarray]
    metrics: dict[str, Estimate]


def score_answers(texts: Texts, seed: int = 0) -> AnswerScores:
    """Judge answers, each patient counting once."""
    references, generated = list(texts.references), list(texts.generated)
    rows = {
        "exact": exact_match(references, generated),
        "token_f1": token_f1(references, generated),
        "bleu": bleu(references, generated),
        "rouge_l": rouge_l(references, generated),
    }
    _, owner = np.unique(np.asarray(texts.patients, dtype=object), return_inverse=True)
    by_patient = {name: per_patient(values, owner) for name, values in rows.items()}
    metrics = {name: intervals.mean(values, RESAMPLES, seed, 0.0, 1.0) for name, values in by_patient.items()}
    return AnswerScores(by_patient, metrics)


def exact_match(references: Sequence[str], generated: Sequence[str]) -> np.ndarray:
    """1 where an answer has the words of its reference, in their order, else 0; float64 [rows]."""
    pairs = zip(references, generated, strict=True)
    return np.array([float(words(reference) == words(text)) for reference, text in pairs])


def token_f1(references: Sequence[str], generated: Sequence[str]) -> np.ndarray:
    """F1 of the words of an answer against those of its reference, repeats counted (Rajpurkar et al. 2016); 0..1 [rows]."""
    return np.array([_f1(words(reference), words(text)) for reference, text in zip(references, generated, strict=True)])


def commonest_answers(questions: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    """The commonest answer to each question, and under an empty question that to all."""
    given: dict[str, list[str]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        given[question].append(answer)
    return {"": commonest(answers)} | {question: commonest(known) for question, known in given.items()}


def from_commonest(questions: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """What somebody answers who has seen `known` and looks at no picture."""
    return [known.get(question, known[""]) for question in questions]


def answer_guard(name: str, own: AnswerScores, other: AnswerScores, against: str, seed: int = 0) -> Guard:
    """Whether answers match more often than other ones to the same questions.

    Args:
        against: what the other ones are, in words.
    """
    difference = intervals.mean(own.by_patient["exact"] - other.by_patient["exact"], RESAMPLES, seed, -1.0, 1.0)
    passed = (difference.low or 0.0) > 0
    own_share, other_share = (scores.metrics["exact"].value for scores in (own, other))
    found = "better" if passed else "not surely better"
    text = f"exact match {own_share:.3f}, {against} {other_share:.3f} (difference {difference}): {found}"
    return Guard(name, passed, difference, None, text)


def _f1(reference: list[str], text: list[str]) -> float:
    shared = sum((Counter(reference) & Counter(text)).values())
    total = len(reference) + len(text)
    return 2 * shared / total if total else 1.0
