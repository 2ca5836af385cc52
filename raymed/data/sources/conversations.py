"""Conversations about pictures: JSONL lines, alone or named by a meta JSON ``{name: {root, annotation, ...}}``.

A line has `image`, `conversations` (turns of `from` and `value`), and a patient: a field `patient_id` or `patient`, or
found in the image's path by `patient_regex`; where no line has one, each image is a patient of its own. The label is the
answer to a multiple-choice question ``<cls>: 0|1|2|3.``.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from raymed.data.choices import parse_answer, parse_choices
from raymed.data.record import Message
from raymed.data.sources.dicom import sort_named
from raymed.data.sources.listing import (
    Listing,
    Refusal,
    Slice,
    SourceSettings,
    make_study,
    natural_key,
    some,
    sorted_studies,
)
from raymed.data.sources.meta import DataSet, meta_root, read_meta
from raymed.data.sources.paths import absence, file_stat, inside, read_text
from raymed.data.sources.splits import StatedSplits, split_named
from raymed.errors import UserError

ROLES = ("system", "human", "gpt")
SHOWN = 10


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    patient: str | None
    study: str | None
    label: str | None
    messages: tuple[Message, ...]


def is_conversations(path: Path) -> bool:
    """A ``.jsonl`` file, or a ``.json`` file."""
    return path.suffix.lower() in (".jsonl", ".json")


def names_images(path: Path) -> bool:
    """Whether a file beside others is a meta file or lines of conversations, by its first 64 KiB."""
    if not is_conversations(path):
        return False
    with path.open("rb") as file:
        start = file.read(65536)
    return (b'"conversations"' if path.suffix.lower() == ".jsonl" else b'"annotation"') in start


def list_studies(path: Path, settings: SourceSettings) -> Listing:
    """The studies of a meta JSON or a JSONL file. Pictures that are missing are refused; a wrong line is an error.

    Raises:
        UserError: broken lines (the first ten, with file and line), a wrong meta file, a path that leaves the folder.
    """
    if path.is_dir():
        found = [item for item in sorted(path.iterdir()) if names_images(item)]
        if len(found) != 1 and not are_splits(found):
            raise UserError(f"{path} holds {len(found)} JSON or JSONL files; name the one to use")
        path = found[0] if len(found) == 1 else path
    notes: list[str] = []
    if path.is_dir():
        root = Path(settings.root).expanduser().absolute() if settings.root else path
        sets = [DataSet(file.stem, ".", file, {}) for file in found]
    elif path.suffix.lower() == ".json":
        root = meta_root(path, settings.root, notes)
        sets = read_meta(path, root)
    else:
        root = Path(settings.root).expanduser().absolute() if settings.root else path.parent
        sets = [DataSet(root.name, ".", path, {})]
    notes += [note for part in sets for note in _notes(part)]
    known, splits = True, StatedSplits()
    stated = {part.name: split_named(part.name) or split_named(part.annotation.stem) for part in sets}
    divided = settings.labelled and settings.splits and len(set(filter(None, stated.values()))) > 1
    if divided and (others := [name for name, split in stated.items() if split is None]):
        raise UserError(
            f"{path}: some sets are named after splits, and these are not: {some(others)}. Name each after its split, or "
            "pass --source.splits false, which divides all anew"
        )
    stats: dict[str, os.stat_result] = {}
    refusals: list[Refusal] = []
    studies = []
    seen: set[str] = set()
    about: dict[str, list[str]] = {}
    for part in sets:
        rows = _read_lines(part, root, settings)
        lines_of: dict[str, int] = defaultdict(int)
        for row in rows:
            lines_of[row.path] += 1
            if divided:
                splits.add(row.patient or row.path, stated[part.name] or "", f"{part.annotation}:{row.line}")
        if rows[0].patient is None:
            known = False
            notes.append(
                f"{part.name}: no line names a patient, so each of the {len(lines_of)} pictures counts as a patient of its "
                "own: a person with two of them may be in two splits. Add a field `patient_id`, or pass "
                "--source.patient-regex"
            )
        owners = {
            row.path: (row.patient or row.path, row.study or row.patient or row.path)
            for row in rows
            if file_stat(root / row.path)
        }
        dicom = sort_named(root, owners, settings)
        unusable = dicom.refused | dicom.left_out
        groups: dict[tuple[str, str, str | None], list[Slice]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: (dicom.place(row.path).position, natural_key(row.path))):
            where = f"{part.annotation.name}:{row.line}"
            name = row.path if lines_of[row.path] == 1 else f"{row.path}?{_digest(row.messages)}"
            if name in seen:
                raise UserError(f"{part.annotation}:{row.line}: {row.path} stands in the data twice with the same text")
            seen.add(name)
            stat = file_stat(root / row.path)
            if stat is None:
                refusals.append(Refusal(name, where, row.patient or row.path, absence(root / row.path)))
                continue
            if row.path in unusable:
                expected = row.path in dicom.left_out
                refusals.append(Refusal(name, where, row.patient or row.path, unusable[row.path], expected))
                continue
            stats[row.path] = stat
            place, patient = dicom.place(row.path), row.patient or row.path
            group = groups[patient, (row.study or patient) + place.study, row.label]
            group.append(Slice(name, row.path, None, len(group), where, row.messages, place.geometry, place.modality))
        studies += [
            make_study(patient, study, label, part.name, slices, stats) for (patient, study, label), slices in groups.items()
        ]
        notes += dicom.notes()
        about |= dicom.about
    return Listing(
        *(root, "conversations", sorted_studies(studies), tuple(refusals), (*notes, *splits.notes()), known, splits.of),
        about=about,
    )


def are_splits(files: Sequence[Path]) -> bool:
    """Whether files are lines of conversation called after different splits."""
    names = [split_named(file.stem) for file in files if file.suffix.lower() == ".jsonl"]
    return len(files) == len(names) == len(set(names)) > 1 and all(names)


def _notes(part: DataSet) -> list[str]:
    """What a person should know of a data set's entry in the meta file."""
    notes = []
    unused = {key: value for key, value in part.entry.items() if key not in ("root", "annotation", "length")}
    if unused:
        shown = ", ".join(f"{key}={value}" for key, value in unused.items())
        notes.append(f"{part.name}: these keys do not change how data are prepared: {shown}")
    lines = sum(1 for _ in _lines(part.annotation))
    if part.entry.get("length", lines) != lines:
        notes.append(f"{part.name}: length says {part.entry['length']}, the annotation has {lines} lines")
    return notes


def _read_lines(part: DataSet, root: Path, settings: SourceSettings) -> list[_Row]:
    rows: list[_Row] = []
    broken: list[tuple[int, str]] = []
    for number, line in _lines(part.annotation):
        try:
            rows.append(_row(number, line, part, root, settings))
        except ValueError as error:
            broken.append((number, f"{part.annotation}:{number}: {error}"))
    if any(row.patient is not None for row in rows):
        reason = "no patient, though other lines name theirs: add a field `patient_id`, or pass --source.patient-regex"
        unnamed = [(row.line, f"{part.annotation}:{row.line}: {reason}") for row in rows if row.patient is None]
        broken = sorted([*broken, *unnamed])
    if broken:
        more = f"\nand {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        shown = "\n".join(text for _, text in broken[:SHOWN])
        raise UserError(f"{len(broken)} lines cannot be used; mend or remove them:\n{shown}{more}")
    if not rows:
        raise UserError(f"{part.annotation}: has no lines")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # only \n ends a line: texts may hold other line separators unescaped
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def _row(number: int, line: str, part: DataSet, root: Path, settings: SourceSettings) -> _Row:
    """One line.

    Raises:
        ValueError: what is wrong with it.
        UserError: its path leaves the root.
    """
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not a conversation: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    image = _image(content)
    where = f"{part.annotation}:{number}"
    inside(root / part.folder, image, where)
    path = inside(root, f"{part.folder}/{image}", where)
    messages = read_turns(content)
    patient = _patient(content, path, settings)
    study = read_name(content, "study") or read_name(content, "study_id")
    return _Row(number, path, patient, study, _label(messages) if settings.labelled else None, messages)


def _image(content: dict[str, Any]) -> str:
    image = content.get("image")
    if isinstance(image, list):
        if len(image) != 1:
            raise ValueError(f"{len(image)} images in one line; this needs exactly one")
        image = image[0]
    if not isinstance(image, str) or not image.strip():
        raise ValueError("no image")
    return image


def read_turns(content: dict[str, Any]) -> tuple[Message, ...]:
    """The turns of a line.

    Raises:
        ValueError: what is wrong with them.
    """
    turns = content.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise ValueError("no conversations")
    messages = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ValueError(f"conversations[{index}] needs `from` and a text `value`")
        role = turn.get("from")
        if role not in ROLES or (role == "system" and index > 0):
            raise ValueError(f"conversations[{index}]: from is {role!r}; known: human, gpt, and system as the first turn")
        messages.append(Message(role, turn["value"]))
    return tuple(messages)


def _patient(content: dict[str, Any], path: str, settings: SourceSettings) -> str | None:
    patient = read_name(content, "patient_id") or read_name(content, "patient")
    if patient is None and settings.patient_regex:
        patient = settings.patient_of(path)
        if patient is None:
            raise ValueError(f"patient_regex {settings.patient_regex!r} does not match {path}")
    return patient


def read_name(content: dict[str, Any], key: str) -> str | None:
    """A name in a line, which may be written as a number; None without one.

    Raises:
        ValueError: something else stands there.
    """
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{key} must be a text or a whole number")
    return str(value).strip() or None


def _label(messages: tuple[Message, ...]) -> str | None:
    """The answer to the line's `<cls>` question; None if it asks none."""
    label = None
    for index, message in enumerate(messages):
        choices = parse_choices(message.text) if message.role == "human" else None
        if choices is None:
            continue
        if label is not None:
            raise ValueError("two <cls> questions in one line")
        if index + 1 == len(messages) or messages[index + 1].role != "gpt":
            raise ValueError("the <cls> question has no answer")
        label = parse_answer(choices, messages[index + 1].text)
    return label


def _digest(messages: tuple[Message, ...]) -> str:
    return blake2b(repr(messages).encode(), digest_size=4).hexdigest()
