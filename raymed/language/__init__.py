"""What a person reads, in their language: from one catalogue for each language.

A catalogue is `LANGUAGE.yaml`, a table from English sentences to translated ones. The machine's lies here, and a system's in
its room. A sentence without a translation is shown in English. Keys of JSON and MLflow, names of files, and what stays with
a model or in MLflow, such as a card, are in English always.

Errors are in English wherever they are raised, often by another process, and kept: in JSON, logs and the search's record. So
are most lines of results. What a person is shown of them is `reworded`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, Self
from unicodedata import east_asian_width

import yaml

from raymed.errors import UserError

ENGLISH = "en"
LANGUAGES = (ENGLISH, *sorted(path.stem for path in Path(__file__).parent.glob("*.yaml")))

_asked_for = ""  # one person looks at a process, whatever its threads
_for_files = ContextVar("_for_files", default=False)


def speak(language: str) -> None:
    """Say everything in a language from now on; empty: in English.

    Raises:
        UserError: there is no catalogue of it.
    """
    global _asked_for
    if language and language not in LANGUAGES:
        raise UserError(f"--language {language}: there are {', '.join(LANGUAGES)}")
    _asked_for = language


def spoken() -> str:
    """The language that a person asked for; empty where nobody did."""
    return "" if _for_files.get() else _asked_for


@contextmanager
def in_english() -> Iterator[None]:
    """What is written meanwhile stays with data or a model, whoever reads it."""
    token = _for_files.set(True)
    try:
        yield
    finally:
        _for_files.reset(token)


def say(sentence: str, /, **values: Any) -> str:
    """A sentence in the language that is spoken.

    Args:
        sentence: in English, a literal, with the names of `values` in braces, as `str.format` takes them.
    """
    return translated(sentence).format(**values)


def translated(sentence: str) -> str:
    """A sentence with its placeholders as they are."""
    language = spoken()
    return catalogue(language).get(sentence, sentence) if language else sentence


def reworded(text: str) -> str:
    """A text that was put together in English, in the language that is spoken: each of its sentences is found by its words.

    What a sentence holds is looked at as well, since errors quote errors. A single word is left alone: it may be a name.
    """
    if not spoken() or " " not in text:
        return text
    whole = _found(text)
    if whole is None or not whole.telling:
        for mark in ("\n", "; "):
            if mark in text:
                return mark.join(map(reworded, text.split(mark)))
    if whole:
        for mark, theirs in ((", ", "，"), ("; ", "；")):
            listed = text.split(mark)
            if len(listed) > 1 and all(_found(each) is whole for each in listed):
                return theirs.join(map(reworded, listed))
        return whole.filled(whole.held(text))
    start = text[: len(text) - len(text.lstrip(" "))] or ("- " if text.startswith("- ") else "")
    return start + reworded(text.removeprefix(start)) if start else text


def padded(text: str, width: int) -> str:
    """A text that takes at least so many places on a terminal, where a Chinese character takes two."""
    return text + " " * (width - places(text))


def at_right(text: str, width: int) -> str:
    """The same, at their right end."""
    return " " * (width - places(text)) + text


def places(text: str) -> int:
    """How many places a text takes on a terminal."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


class Translated(logging.Formatter):
    """Lines of a log, whose sentence is the record's message; what it is filled with may be sentences, too."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, str) and spoken():
            args = record.args
            if isinstance(args, tuple):
                args = tuple(reworded(each) if isinstance(each, str) else each for each in args)
            record = logging.makeLogRecord(vars(record) | {"msg": translated(record.msg), "args": args})
        return super().format(record)


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """Translated sentences by the English ones, of the machine and of every system that is there."""
    sentences: dict[str, str] = {}
    for path in sorted(Path(__file__).parents[1].rglob(f"{language}.yaml")):
        sentences |= yaml.safe_load(path.read_text("utf-8"))
    return sentences


_COUNTED = ("unit", "units", "noun", "per", "split")  # what is counted is a word of ours, whoever says it
_TELLING = 8  # letters; a sentence of fewer, such as `{path}: {error}`, tells nothing by itself


@dataclass(frozen=True)
class _Sentence:
    """A sentence of the catalogue, as it is found in a text.

    Attributes:
        parts: its words, between which values stand.
        names: of those values.
    """

    parts: tuple[str, ...]
    names: tuple[str, ...]
    translation: str

    @classmethod
    def of(cls, english: str, translation: str) -> Self:
        parts, names = [""], list[str]()
        for words, name, _, _ in Formatter().parse(english):
            parts[-1] += words
            if name is not None:
                names.append(name)
                parts.append("")
        return cls(tuple(parts), tuple(names), translation)

    @property
    def length(self) -> int:
        return sum(map(len, self.parts))

    @property
    def telling(self) -> bool:
        return self.length >= _TELLING

    def values(self, text: str) -> dict[str, str] | None:
        """What stands between its words in a text; none where the text is not this sentence."""
        if "\n" in text and not any("\n" in part for part in self.parts):
            return None  # each line is of its own
        if not all(part in text for part in self.parts):  # which is soon seen, of nearly all
            return None
        found = re.fullmatch("(.*?)".join(map(re.escape, self.parts)), text, re.DOTALL)
        return dict(zip(self.names, found.groups(), strict=True)) if found else None

    def held(self, text: str) -> dict[str, str]:
        """Its values in a text that it is, in the language that is spoken."""
        values = self.values(text) or {}
        return {name: translated(value) if name in _COUNTED else reworded(value) for name, value in values.items()}

    def filled(self, values: Mapping[str, str]) -> str:
        """Its translation; values are texts already, so that their formats have been followed."""
        parts = Formatter().parse(self.translation)
        return "".join(words + (values[name] if name is not None else "") for words, name, _, _ in parts)


def _found(text: str) -> _Sentence | None:
    """The sentence that a text is; one that tells nothing by itself only where it holds another that does."""
    for sentence in _sentences(spoken()):
        values = sentence.values(text)
        if values is not None and (sentence.telling or sentence.held(text) != values):
            return sentence
    return None


@cache
def _sentences(language: str) -> list[_Sentence]:
    """The catalogue's, the one of most words first: it is the one that was meant."""
    sentences = (_Sentence.of(*each) for each in catalogue(language).items())
    return sorted(sentences, key=lambda each: -each.length)
