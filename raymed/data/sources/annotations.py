"""Annotations: the files of conversation lines that a meta file names, or a single one, and how each data set is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from raymed.data.sources.meta import DataSet, read_meta
from raymed.errors import UserError

KNOWN_KEYS = ("root", "annotation", "data_augment", "repeat_time", "max_dynamic_patch", "length")


def data_sets(path: Path, root: Path, notes: list[str]) -> list[DataSet]:
    """The data sets of a meta file, or the one of a file of lines."""
    if path.suffix.lower() == ".jsonl":
        return [DataSet(path.stem, ".", path, {})]
    if path.suffix.lower() != ".json":
        raise UserError(f"{path}: lines of conversation end in .jsonl, a meta file or an array in .json, a table in .csv")
    if is_array(path):
        lines = _as_lines(path, notes)
        return [DataSet(lines.stem, ".", lines, {})]
    sets = []
    for part in read_meta(path, root):
        annotation = part.annotation
        if annotation.suffix.lower() == ".json" and is_array(annotation):
            annotation = _as_lines(annotation, notes)
        if not annotation.name.endswith("jsonl"):
            raise UserError(f"{path}: {part.name}: the annotation {annotation.name} must end in jsonl, or be a JSON array")
        sets.append(DataSet(part.name, part.folder, annotation, part.entry))
    return sets


def is_array(path: Path) -> bool:
    """Whether a JSON file holds an array."""
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _as_lines(path: Path, notes: list[str]) -> Path:
    """A JSON array, written as JSONL beside it."""
    target = path.with_suffix(".jsonl")
    try:
        array = json.loads(path.read_text("utf-8-sig"))
        content = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in array)
        if target.exists() and target.read_text("utf-8") != content:
            raise UserError(f"{path} is a JSON array, and {target.name} beside it holds something else: remove one of them")
        if not target.exists():
            target.write_text(content, "utf-8")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    except OSError as error:
        raise UserError(f"{path} is a JSON array, and {target} cannot be written: {error}. Convert it to JSONL") from error
    notes.append(f"{path.name} is a JSON array: its {len(array)} items were written as lines to {target.name}")
    return target


def usage(path: Path, part: DataSet, most: int, notes: list[str]) -> dict[str, Any]:
    """What is done with a data set."""
    entry, where = part.entry, f"{path}: {part.name}"
    unknown = [key for key in entry if key not in KNOWN_KEYS]
    if unknown:
        notes.append(f"data set {part.name}: keys that mean nothing here: {', '.join(unknown)}")
    repeat, augmented, tiles = entry.get("repeat_time", 1), entry.get("data_augment", False), entry.get("max_dynamic_patch")
    if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not repeat > 0 or (repeat > 1 and repeat % 1):
        raise UserError(
            f"{where}: repeat_time is {repeat!r}: below 1 it is the share of lines that is kept, from 1 up how often all "
            "are shown, a whole number"
        )
    if not isinstance(augmented, bool):
        raise UserError(f"{where}: data_augment is {augmented!r}: write true or false")
    if tiles is not None and (isinstance(tiles, bool) or not isinstance(tiles, int) or tiles < 1):
        raise UserError(f"{where}: max_dynamic_patch is {tiles!r}: write a whole number from 1 up")
    return {
        "root": part.folder,
        "annotation": part.annotation.name,
        "lines": 0,
        "repeat_time": repeat,
        "data_augment": augmented,
        "max_dynamic_patch": tiles or most,
    }


def kept_lines(part: DataSet, use: dict[str, Any], notes: list[str]) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of the lines of a data set that are not blank: the first of them for a share."""
    with part.annotation.open("rb") as file:
        total = sum(1 for line in file if line.strip())
    if part.entry.get("length", total) != total:
        notes.append(f"data set {part.name}: length says {part.entry['length']}, the annotation has {total} lines")
    use["lines"] = kept = int(total * use["repeat_time"]) if use["repeat_time"] < 1 else total
    if kept < total:
        notes.append(f"data set {part.name}: the first {kept} of {total} lines (repeat_time {use['repeat_time']})")
    if not kept:
        raise UserError(f"data set {part.name}: {total} lines, of which repeat_time {use['repeat_time']} keeps none")
    yield from islice(_numbered(part.annotation), kept)


def _numbered(path: Path) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset, line
            offset += len(line)
