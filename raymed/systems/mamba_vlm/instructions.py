"""Reports as instruction files: JSON or JSONL of a picture and a conversation, a question and its answer each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from raymed.data.sources.paths import read_text
from raymed.data.sources.sample import Sample, read_sample
from raymed.errors import UserError
from raymed.models.marks import IMAGE

SUFFIXES = (".json", ".jsonl")


def is_instructions(path: Path) -> bool:
    """By the extension."""
    return path.suffix.lower() in SUFFIXES


def read_instructions(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of each entry, as a CSV's lines give them: image, question, answer, and patient_id where it is said.

    Raises:
        UserError: not JSON, or an entry that is not one picture, one question and one answer; with its line, or its place.
    """
    text = read_text(path)
    for number, content in _entries(path, text):
        try:
            sample = read_sample(content.encode())
            yield number, _cells(sample)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error


def _entries(path: Path, text: str) -> Iterator[tuple[int, str]]:
    if path.suffix.lower() == ".jsonl":
        yield from ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
        return
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: needs a list of entries with image and conversations")
    yield from ((number, json.dumps(entry, ensure_ascii=False)) for number, entry in enumerate(entries, start=1))


def _cells(sample: Sample) -> dict[str, str]:
    """Raises: ValueError: several pictures, or more than one question and its answer."""
    if len(sample.images) != 1:
        raise ValueError(f"{len(sample.images)} pictures: a report is about one")
    if [turn.role for turn in sample.messages] != ["human", "gpt"]:
        raise ValueError("a report is one question (human) and its answer (gpt)")
    question, answer = (turn.text.replace(IMAGE, "").strip() for turn in sample.messages)
    return {"image": sample.images[0], "question": question, "answer": answer, "patient_id": sample.patient or ""}
