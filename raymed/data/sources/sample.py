"""A sample for pretraining: a conversation about no, one or several pictures, as a line of JSONL writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raymed.data.choices import parse_answer, parse_choices
from raymed.data.record import Message
from raymed.data.sources.conversations import read_name, read_turns
from raymed.models.marks import IMAGE, REQUIRED

OTHER_NAMES = ("images", "image_path", "image_paths", "img", "picture")  # where other programs keep the picture


@dataclass(frozen=True, slots=True)
class Sample:
    """One line. `images` are paths as it writes them; human turns have one ``<image>`` mark for each."""

    images: tuple[str, ...]
    messages: tuple[Message, ...]
    patient: str | None = None
    study: str | None = None


class UnansweredError(ValueError):
    """Turns that nothing can be learned from, though nothing in them is written wrongly."""


def read_sample(line: bytes) -> Sample:
    """A line of JSONL, checked.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not a sample: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a character (one of two surrogates, as a cut emoji leaves it)") from error
    images = _images(content)
    return Sample(
        images=images,
        messages=with_marks(read_turns(content), len(images)),
        patient=read_name(content, "patient_id") or read_name(content, "patient"),
        study=read_name(content, "study") or read_name(content, "study_id"),
    )


def with_marks(messages: tuple[Message, ...], pictures: int) -> tuple[Message, ...]:
    """The turns with one ``<image>`` mark for each picture: a single picture without one is shown first.

    Raises:
        ValueError: more or fewer marks, nothing to learn, or text that would be taken for a special token.
    """
    for index, message in enumerate(messages):
        if message.role == "gpt" and not message.text.strip():
            raise ValueError(f"conversations[{index}]: an empty answer")
        if found := next((token for token in REQUIRED if token in message.text), None):
            raise ValueError(f"conversations[{index}]: the text holds the special token {found}")
    if all(message.role != "gpt" for message in messages):
        raise UnansweredError("no answer (a turn from gpt) to learn from")
    messages = _with_choices(messages)
    marks = sum(message.text.count(IMAGE) for message in messages if message.role == "human")
    if marks == pictures:
        return messages
    first = next((index for index, message in enumerate(messages) if message.role == "human"), None)
    if pictures != 1 or marks or first is None:
        raise ValueError(f"{marks} {IMAGE} marks in human turns for {pictures} pictures")
    shown = Message("human", f"{IMAGE}\n{messages[first].text}")
    return (*messages[:first], shown, *messages[first + 1 :])


def out_of_turn(messages: Sequence[Message]) -> str:
    """What keeps turns from being a dialogue: human and gpt take turns, and gpt has the last word; empty where they do."""
    offset = int(bool(messages) and messages[0].role == "system")
    for index, message in enumerate(messages[offset:]):
        expected = "gpt" if index % 2 else "human"
        if message.role != expected:
            return f"conversations[{index + offset}] is of {message.role}, where it is {expected}'s turn"
    return "" if messages[-1].role == "gpt" else f"conversations[{len(messages) - 1}] has no answer"


def _with_choices(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns, with the answers to questions with declared choices (``<cls>: a|b.``) as those are written.

    Raises:
        ValueError: a question without an answer, or with one that is not among its choices.
    """
    turns = list(messages)
    for index, message in enumerate(messages):
        try:
            choices = parse_choices(message.text) if message.role == "human" else None
            if choices is None:
                continue
            if index + 1 == len(messages) or messages[index + 1].role != "gpt":
                raise UnansweredError("the <cls> question has no answer")
            turns[index + 1] = Message("gpt", parse_answer(choices, messages[index + 1].text))
        except ValueError as error:
            raise type(error)(f"conversations[{index}]: {error}") from error
    return tuple(turns)


def _images(content: dict[str, Any]) -> tuple[str, ...]:
    given = content.get("image")
    if not given:
        if other := next((key for key in OTHER_NAMES if content.get(key)), None):
            raise ValueError(f"the picture is named under {other!r}: call it image")
        if content.get("video"):
            raise ValueError("a video; only pictures and text are read")
        return ()
    images = given if isinstance(given, list) else [given]
    if not all(isinstance(image, str) and image.strip() for image in images):
        raise ValueError("image must be a path or a list of paths")
    return tuple(images)
