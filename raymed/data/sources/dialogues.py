"""What conversations are like: how long answers are, how questions vary, what is said again and again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from raymed.data.choices import parse_choices
from raymed.data.record import Message
from raymed.models.marks import IMAGE

ENOUGH = 10_000  # samples, below which a backbone hardly gets better
LONG = 50  # characters of an answer that says something of a picture
VARIED = 10  # kinds of question
REPEATED = 0.5  # share of the answers that stand in the data more than once
OPENING = 4  # words of a question that tell its kind; of a text without blanks so many characters


class Dialogues:
    """Counts over the conversations that were added; texts are kept as numbers only."""

    def __init__(self) -> None:
        self.samples = 0
        self._lengths: list[int] = []  # of answers in words of their own
        self._answers: Counter[int] = Counter()  # the same, by their text's hash
        self._questions: Counter[str] = Counter()
        self._choices = 0

    def add(self, messages: Sequence[Message]) -> None:
        """Take in a conversation."""
        self.samples += 1
        declared = False
        for message in messages:
            if message.role == "human":
                declared = parse_choices(message.text) is not None
                self._questions["<cls>" if declared else _kind(message.text)] += 1
            elif message.role == "gpt" and declared:
                self._choices += 1
            elif message.role == "gpt":
                self._lengths.append(len(message.text.strip()))
                self._answers[hash(message.text.strip())] += 1

    def lines(self) -> list[str]:
        """For a person: what there is, and a line each where common advice is missed."""
        if not self.samples:
            return []
        common = ", ".join(f"{kind!r} {count}" for kind, count in self._questions.most_common(3))
        told = [
            f"{self.samples} conversations; {len(self._lengths)} answers in words of their own, {self._choices} to declared "
            f"choices; {len(self._questions)} kinds of question, most often {common}"
        ]
        if self.samples < ENOUGH:
            told.append(f"fewer than {ENOUGH} samples: a backbone hardly gets better by so few")
        if self._lengths:
            low, median, high = np.percentile(self._lengths, [10, 50, 90])
            told.insert(1, f"characters of an answer: median {median:.0f}, most from {low:.0f} to {high:.0f}")
            if median < LONG:
                told.append(f"half of the answers have fewer than {LONG} characters: short ones say little of a picture")
            again = sum(count for count in self._answers.values() if count > 1)
            if again > REPEATED * len(self._lengths):
                told.append(
                    f"{again} of {len(self._lengths)} answers stand in the data more than once: they are learned by heart"
                )
        if len(self._questions) < VARIED:
            told.append(
                f"fewer than {VARIED} kinds of question: describing, counting, locating and reasoning teach more each"
            )
        return told


def _kind(question: str) -> str:
    """The first words of a question, or, of a text without blanks, its first characters."""
    text = re.sub(r"\s+", " ", question.replace(IMAGE, " ")).strip().casefold()
    words = text.split(" ")
    return " ".join(words[:OPENING])[:LONG] if len(words) > 1 else text[:OPENING]
