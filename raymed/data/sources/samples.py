"""Samples for pretraining: conversations about no, one or several pictures, from the data sets of a meta file, or a table.

A line is read, checked and let go: what is kept of it is where it begins, whose it is, and a digest. Its text is read
again when its pictures are.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from raymed.data.choices import parse_answer, parse_choices
from raymed.data.record import Message
from raymed.data.sources.conversations import read_name, read_turns
from raymed.data.sources.listing import Listing, Refusal, Slice, SourceSettings, Study, file_stat, inside
from raymed.data.sources.meta import DataSet, read_meta
from raymed.data.sources.table import is_table, read_cells
from raymed.errors import UserError
from raymed.models.internvl_text import IMAGE, REQUIRED

KNOWN_KEYS = ("root", "annotation", "data_augment", "repeat_time", "max_dynamic_patch", "length")
SHOWN = 100
USUAL_NAMES = {
    "image": ("image", "image_path", "path", "file", "filename", "file_name"),
    "text": ("text", "caption", "report", "note", "answer"),
    "patient_id": ("patient_id", "patient", "patientid", "subject_id", "subject"),
    "question": ("question", "instruction", "prompt"),
    "study": ("study", "study_id", "series", "series_id"),
}


@dataclass(frozen=True)
class TextColumns:
    """Names of a table's columns, where they are not the usual ones.

    Attributes:
        image: path of the picture, relative to the table's folder.
        text: what is said of it, which is learned.
        patient_id: whose picture it is.
        question: what is asked; without it, `question` of the settings.
        study: which study of the patient.
    """

    image: str | None = None
    text: str | None = None
    patient_id: str | None = None
    question: str | None = None
    study: str | None = None


@dataclass(frozen=True)
class SampleSettings:
    """How samples are read.

    Attributes:
        format: conversations (a meta JSON or JSONL) or table (a CSV of pictures and texts); auto looks at the file's name.
        root: the folder that paths in a meta file are relative to, if not its own, or that the pictures of a table lie in.
        patient_regex: a regular expression searched in the path of a sample's first picture, where a line names no
            patient; its first group is the patient.
        columns: names of a table's columns, where they are not the usual ones.
        question: what is asked about the pictures of a table.
    """

    format: Literal["auto", "conversations", "table"] = "auto"
    root: str | None = None
    patient_regex: str | None = None
    columns: TextColumns = field(default_factory=TextColumns)
    question: str = "Describe this picture."

    def __post_init__(self) -> None:
        _ = self.source_settings

    @property
    def source_settings(self) -> SourceSettings:
        """The part that all sources share, checked."""
        return SourceSettings(root=self.root, patient_regex=self.patient_regex)


@dataclass(frozen=True, slots=True)
class Sample:
    """One line. `images` are paths as it writes them; human turns have one ``<image>`` mark for each."""

    images: tuple[str, ...]
    messages: tuple[Message, ...]
    patient: str | None = None
    study: str | None = None


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
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
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
        raise ValueError("no answer (a turn from gpt) to learn from")
    messages = _with_choices(messages)
    marks = sum(message.text.count(IMAGE) for message in messages if message.role == "human")
    if marks == pictures:
        return messages
    first = next((index for index, message in enumerate(messages) if message.role == "human"), None)
    if pictures != 1 or marks or first is None:
        raise ValueError(f"{marks} {IMAGE} marks in human turns for {pictures} pictures")
    shown = Message("human", f"{IMAGE}\n{messages[first].text}")
    return (*messages[:first], shown, *messages[first + 1 :])


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
                raise ValueError("the <cls> question has no answer")
            turns[index + 1] = Message("gpt", parse_answer(choices, messages[index + 1].text))
        except ValueError as error:
            raise ValueError(f"conversations[{index}]: {error}") from error
    return tuple(turns)


def list_samples(
    path: Path, settings: SampleSettings, most: int, private: bool = False
) -> tuple[Listing, dict[str, dict[str, Any]]]:
    """The samples of a meta JSON, a JSONL file or a table, and how each data set is used, by its name.

    Args:
        most: most tiles of a picture where a data set does not say otherwise.
        private: whether a text that names its patient is wrong.

    Raises:
        UserError: everything that is wrong with the lines, with file and line, or a wrong meta file.
    """
    path = path.expanduser().absolute()
    if not path.is_file():
        raise UserError(f"no such file: {path}. Give a meta JSON, a JSONL file, or a CSV")
    root = Path(settings.root).expanduser().absolute() if settings.root else path.parent
    samples = _Samples(root, settings.source_settings, private)
    if settings.format == "table" or (settings.format == "auto" and is_table(path)):
        used = {path.stem: _use(path, DataSet(path.stem, ".", path, {}), most, samples.notes)}
        for number, sample in _table_rows(path, root, settings):
            samples.add(path.stem, most, sample, f"{path.name}:{number}", None)
        used[path.stem]["lines"] = samples.lines
    else:
        used = {}
        for part in _data_sets(path, root, samples.notes):
            use = used[part.name] = _use(path, part, most, samples.notes)
            for number, offset, line in _kept_lines(part, use, samples.notes):
                samples.add_line(part, use["max_dynamic_patch"], line, number, offset)
    return samples.listing(), used


class _Samples:
    """Samples in the making: grouped by patient and study, and everything that is wrong with them."""

    def __init__(self, root: Path, settings: SourceSettings, private: bool) -> None:
        self.lines = 0
        self.notes: list[str] = []
        self._root, self._settings, self._private = root, settings, private
        self._wrong: list[tuple[str, str]] = []
        self._refusals: list[Refusal] = []
        self._first: dict[str, str] = {}  # id -> where it stands
        self._owners: dict[str, str] = {}  # study -> patient
        self._groups: dict[tuple[str, str, str], tuple[list[Slice], list[bytes]]] = {}
        self._unknown = 0

    def add_line(self, part: DataSet, most: int, line: bytes, number: int, offset: int) -> None:
        where = f"{part.annotation.name}:{number}"
        try:
            sample = read_sample(line)
            folder = self._root / part.folder
            for image in sample.images:
                inside(folder, image, where)
            images = tuple(inside(self._root, f"{part.folder}/{image}", where) for image in sample.images)
        except (ValueError, UserError) as error:
            self.lines += 1
            self._wrong.append((where, str(error).removeprefix(f"{where}: ")))
            return
        place = posixpath.normpath(os.path.relpath(part.annotation, self._root)), offset
        self.add(part.name, most, Sample(images, sample.messages, sample.patient, sample.study), where, place)

    def add(self, source: str, most: int, sample: Sample, where: str, line: tuple[str, int] | None) -> None:
        """Take in a sample whose paths are relative to the root; `line` says where it can be read again."""
        self.lines += 1
        content = repr((sample.images, sample.messages, sample.patient, sample.study))
        name = f"{source}/{blake2b(content.encode(), digest_size=8).hexdigest()}"
        patient = sample.patient
        if patient is None and sample.images and self._settings.patient_regex:
            patient = self._settings.patient_of(sample.images[0])
            if patient is None:
                pattern = self._settings.patient_regex
                self._wrong.append((where, f"patient_regex {pattern!r} does not match {sample.images[0]}"))
                return
        elif patient is None:
            self._unknown += 1
            patient = sample.images[0] if sample.images else name
        elif self._private and any(re.search(rf"(?<!\w){re.escape(patient)}(?!\w)", turn.text) for turn in sample.messages):
            self._wrong.append((where, "the text names its patient, who is to have a pseudonym"))
            return
        study = f"{source}/{sample.study or patient}"
        if self._owners.setdefault(study, patient) != patient:
            self._wrong.append((where, f"study {sample.study} is of {self._owners[study]} and of {patient}"))
            return
        if name in self._first:
            reason = f"the same as {self._first[name]}; to show a data set more often, use repeat_time"
            self._refusals.append(Refusal(f"{name} {where}", where, patient, reason))
            return
        self._first[name] = where
        stats = [file_stat(self._root / image) for image in sample.images]
        if None in stats:
            lost = f"picture {stats.index(None) + 1} of {len(stats)} does not exist"
            self._refusals.append(Refusal(name, where, patient, lost))
            return
        slices, digests = self._groups.setdefault((patient, study, source), ([], [b""]))
        known = [(stat.st_size, stat.st_mtime_ns) for stat in stats if stat is not None]
        digests[0] = blake2b(digests[0] + repr((patient, name, most, known)).encode(), digest_size=16).digest()
        path, offset = line or (sample.images[0], None)
        slices.append(Slice(name, path, offset, len(slices), where, () if line else sample.messages))

    def listing(self) -> Listing:
        """Raises: UserError: anything was wrong."""
        if self._wrong:
            kinds = Counter(re.sub(r"\d+", "N", reason) for _, reason in self._wrong).most_common(SHOWN)
            counts = "\n".join(f"  {count} x {reason}" for reason, count in kinds)
            lines = "\n".join(f"{where}: {reason}" for where, reason in self._wrong[:SHOWN])
            more = f"\nand {len(self._wrong) - SHOWN} more" if len(self._wrong) > SHOWN else ""
            raise UserError(
                f"{len(self._wrong)} of {self.lines} lines cannot be used; mend or remove them:\n{lines}{more}\n{counts}"
            )
        studies = [
            Study(patient, study, None, source, tuple(slices), digests[0].hex())
            for (patient, study, source), (slices, digests) in self._groups.items()
        ]
        if not studies:
            reasons = "".join(f"\n  {refusal.where}: {refusal.reason}" for refusal in self._refusals[:10])
            raise UserError(f"{self._root}: no sample can be used{reasons or ': there are no lines'}")
        if self._unknown:
            self.notes.append(
                f"{self._unknown} of {self.lines} samples name no patient: each picture, and each text without one, counts "
                "as a patient of its own. Add a field `patient_id`, or pass --patient-regex"
            )
        studies.sort(key=lambda study: (study.patient, study.study))
        return Listing(
            self._root, "samples", tuple(studies), tuple(self._refusals), tuple(self.notes), patients_known=not self._unknown
        )


def _images(content: dict[str, Any]) -> tuple[str, ...]:
    given = content.get("image")
    if not given:
        if content.get("video"):
            raise ValueError("a video; only pictures and text are read")
        return ()
    images = given if isinstance(given, list) else [given]
    if not all(isinstance(image, str) and image.strip() for image in images):
        raise ValueError("image must be a path or a list of paths")
    return tuple(images)


def _data_sets(path: Path, root: Path, notes: list[str]) -> list[DataSet]:
    """The data sets of a meta file, or the one of a file of lines."""
    if path.suffix.lower() == ".jsonl":
        return [DataSet(path.stem, ".", path, {})]
    if path.suffix.lower() != ".json":
        raise UserError(f"{path}: lines of conversation end in .jsonl, a meta file or an array in .json, a table in .csv")
    if _is_array(path):
        lines = _as_lines(path, notes)
        return [DataSet(lines.stem, ".", lines, {})]
    sets = []
    for part in read_meta(path, root):
        annotation = part.annotation
        if annotation.suffix.lower() == ".json" and _is_array(annotation):
            annotation = _as_lines(annotation, notes)
        if not annotation.name.endswith("jsonl"):
            raise UserError(f"{path}: {part.name}: the annotation {annotation.name} must end in jsonl, or be a JSON array")
        sets.append(DataSet(part.name, part.folder, annotation, part.entry))
    return sets


def _is_array(path: Path) -> bool:
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
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    except OSError as error:
        raise UserError(f"{path} is a JSON array, and {target} cannot be written: {error}. Convert it to JSONL") from error
    notes.append(f"{path.name} is a JSON array: its {len(array)} items were written as lines to {target.name}")
    return target


def _use(path: Path, part: DataSet, most: int, notes: list[str]) -> dict[str, Any]:
    """What is done with a data set."""
    entry, where = part.entry, f"{path}: {part.name}"
    unknown = [key for key in entry if key not in KNOWN_KEYS]
    if unknown:
        notes.append(f"data set {part.name}: keys that mean nothing here: {', '.join(unknown)}")
    repeat, augmented, tiles = entry.get("repeat_time", 1), entry.get("data_augment", False), entry.get("max_dynamic_patch")
    if isinstance(repeat, bool) or not isinstance(repeat, int | float) or repeat <= 0 or (repeat > 1 and repeat % 1):
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


def _kept_lines(part: DataSet, use: dict[str, Any], notes: list[str]) -> Iterator[tuple[int, int, bytes]]:
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


def _table_rows(path: Path, root: Path, settings: SampleSettings) -> Iterator[tuple[int, Sample]]:
    """The lines of a table as conversations of a question and an answer.

    Raises:
        UserError: the table is no table, a cell is empty, or a path leaves the root.
    """
    for line, cells in read_cells(path, USUAL_NAMES, ("image", "text"), vars(settings.columns), {}):
        where = f"{path}:{line}"
        empty = [key for key in ("image", "text") if not cells[key]]
        if empty:
            raise UserError(f"{where}: {' and '.join(empty)} is empty")
        turns = Message("human", cells.get("question") or settings.question), Message("gpt", cells["text"])
        try:
            messages = with_marks(turns, 1)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        image = inside(root, os.path.relpath(path.parent / cells["image"], root), where)
        yield line, Sample((image,), messages, cells.get("patient_id") or None, cells.get("study") or None)
