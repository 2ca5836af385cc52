"""What a person reads, in their language: from one catalogue for each language.

A catalogue is `LANGUAGE.yaml`, a table from English sentences to translated ones. The machine's lies here, and a system's in
its room. A sentence without a translation is shown in English. Keys of JSON and MLflow, names of files, and what stays with
a model or in MLflow, such as a card, are in English always.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any
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


def padded(text: str, width: int) -> str:
    """A text that takes at least so many places on a terminal, where a Chinese character takes two."""
    return text + " " * (width - places(text))


def places(text: str) -> int:
    """How many places a text takes on a terminal."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


class Translated(logging.Formatter):
    """Lines of a log, whose sentence is the record's message."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, str) and spoken():
            record = logging.makeLogRecord(vars(record) | {"msg": translated(record.msg)})
        return super().format(record)


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """Translated sentences by the English ones, of the machine and of every system that is there."""
    sentences: dict[str, str] = {}
    for path in sorted(Path(__file__).parents[1].rglob(f"{language}.yaml")):
        sentences |= yaml.safe_load(path.read_text("utf-8"))
    return sentences
