"""How near generated texts are to those that people wrote: BLEU, ROUGE-L, findings, and how many differ; per patient."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

from raymed.errors import UserError
from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.findings import Findings

CHARACTERS = re.compile(r"[\u3400-\u9fff]")  # of Chinese, each of which counts as a word
WORD = re.compile(rf"{CHARACTERS.pattern}|(?:(?!{CHARACTERS.pattern})\w)+")
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Texts:
    """Generated texts beside those that people wrote, a row each.

    Attributes:
        patients: whose they are, [rows].
        references: what people wrote.
        generated: what a model wrote of the same pictures; empty where it wrote nothing.
    """

    patients: np.ndarray
    references: Sequence[str]
    generated: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.patients):
            raise UserError("there is no text to judge: choose a split that has patients")
        if not len(self.patients) == len(self.references) == len(self.generated):
            raise ValueError("a text is missing")


@dataclass(frozen=True)
class FindingFigures:
    """One finding: how many reference texts name it, how many generated ones, and F1 over texts; None where neither does."""

    name: str
    support: int
    named: int
    f1: Estimate | None


@dataclass(frozen=True)
class Variety:
    """How many texts differ, beside those that people wrote: patients may truly share a report.

    Attributes:
        texts: how many there are.
        distinct: how many different texts were generated; `distinct_references` were written by people.
        single_references: how many references are like no other. What was generated in their place is `apart` different
            texts, and `single` of them are like no other of all.
    """

    texts: int
    distinct: int
    distinct_references: int
    apart: int
    single: int
    single_references: int

    @classmethod
    def of(cls, references: Sequence[str], generated: Sequence[str]) -> Variety:
        """Blanks and letter case aside."""
        rows = [(_plain(reference), _plain(text)) for reference, text in zip(references, generated, strict=True)]
        written, made = (Counter(column) for column in zip(*rows, strict=True))
        alone = [text for reference, text in rows if written[reference] == 1]
        single = sum(made[text] == 1 for text in alone)
        return cls(len(rows), len(made), len(written), len(set(alone)), single, len(alone))

    @property
    def shares(self) -> dict[str, float]:
        """Of texts and references, those that differ; of texts for single references, those that differ from each other."""
        shares = {"distinct": self.distinct / self.texts, "distinct_references": self.distinct_references / self.texts}
        return shares | ({"apart": self.apart / self.single_references} if self.single_references else {})

    def __str__(self) -> str:
        shares = self.shares
        words = (
            f"different texts {self.distinct} of {self.texts} ({shares['distinct']:.0%}), references "
            f"{self.distinct_references} ({shares['distinct_references']:.0%})"
        )
        if not self.single_references:
            return words
        alone = f"for the {self.single_references} with a reference like no other {self.apart}"
        return f"{words}; {alone} ({shares['apart']:.0%}), {self.single} of them like no other of all"


@dataclass(frozen=True, eq=False)
class TextScores:
    """How near texts are, and how sure that is.

    Attributes:
        by_patient: of each figure, the mean over each patient's texts, in the order of `patients`.
        metrics: ``bleu``, ``rouge_l`` and ``finding_f1``: means over patients with their 95 % intervals.
        findings: those that a text names, in the table's order.
        variety: how many texts differ.
        empty: how many texts are empty.
    """

    patients: np.ndarray
    by_patient: dict[str, np.ndarray]
    metrics: dict[str, Estimate]
    findings: tuple[FindingFigures, ...]
    variety: Variety
    empty: int


def score_texts(texts: Texts, findings: Findings, resamples: int = RESAMPLES, seed: int = 0) -> TextScores:
    """Judge texts, each patient counting once.

    ``bleu`` is BLEU-4 of a text, without the orders that it is too short for (Papineni 2002; sacrebleu), 0..1; ``rouge_l``
    the F of the longest common subsequence (Lin 2004; rouge-score); ``finding_f1`` the F1 of a text's findings against its
    reference's, 1 where neither names any.
    """
    references, generated = list(texts.references), list(texts.generated)
    named = [(findings.of(reference), findings.of(text)) for reference, text in zip(references, generated, strict=True)]
    rows = {
        "bleu": bleu(references, generated),
        "rouge_l": rouge_l(references, generated),
        "finding_f1": np.array([_f1(*pair) for pair in named]),
    }
    patients, owner = np.unique(np.asarray(texts.patients, dtype=object), return_inverse=True)
    by_patient = {name: per_patient(values, owner) for name, values in rows.items()}
    return TextScores(
        patients=patients,
        by_patient=by_patient,
        metrics={name: intervals.mean(values, resamples, seed, 0.0, 1.0) for name, values in by_patient.items()},
        findings=tuple(_finding_figures(findings, named)),
        variety=Variety.of(references, generated),
        empty=sum(not text.strip() for text in generated),
    )


def bleu(references: Sequence[str], generated: Sequence[str]) -> np.ndarray:
    """BLEU-4 of each text, 0..1."""
    tokenizer = "zh" if any(CHARACTERS.search(text) for text in references) else "13a"
    metric = BLEU(tokenize=tokenizer, effective_order=True)
    pairs = zip(references, generated, strict=True)
    return np.array([metric.sentence_score(text, [reference]).score / 100 for reference, text in pairs])


def rouge_l(references: Sequence[str], generated: Sequence[str]) -> np.ndarray:
    """ROUGE-L of each text, F, 0..1."""
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(references, generated, strict=True)
    return np.array([scorer.score(reference, text)["rougeL"].fmeasure for reference, text in pairs])


def commonest(texts: Sequence[str]) -> str:
    """The text that stands most often; of equals the first by the alphabet."""
    counts = Counter(texts)
    most = max(counts.values())
    return min(text for text, count in counts.items() if count == most)


def per_patient(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The mean of each patient's values.

    Args:
        values: [rows].
        owner: number of the row's patient, [rows].
    """
    means: np.ndarray = np.bincount(owner, weights=values) / np.bincount(owner)
    return means


def words(text: str) -> list[str]:
    """Words of Latin and other alphabets, and single Chinese characters, without letter case and punctuation."""
    return WORD.findall(text.casefold())


class _Words(Tokenizer):
    """For rouge-score, whose own tokenizer drops Chinese."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _plain(text: str) -> str:
    """Without what does not make a text another: kinds of blanks and letter case."""
    return " ".join(text.casefold().split())


def _f1(reference: frozenset[int], text: frozenset[int]) -> float:
    return 2 * len(reference & text) / (len(reference) + len(text)) if reference or text else 1.0


def _finding_figures(findings: Findings, named: Sequence[tuple[frozenset[int], frozenset[int]]]) -> list[FindingFigures]:
    figures = []
    for index, name in enumerate(findings.table.names):
        having = [(index in reference, index in text) for reference, text in named]
        hits, misses, alarms = (having.count(pair) for pair in ((True, True), (True, False), (False, True)))
        if hits + misses + alarms:
            figures.append(FindingFigures(name, hits + misses, hits + alarms, intervals.f1(hits, misses, alarms)))
    return figures
