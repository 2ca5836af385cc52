"""Samples for pretraining: conversations about no, one or several pictures, from the data sets of a meta file, or a table.

A line is read, checked and let go: what is kept of it is where it begins, whose it is, and a digest. Its text is read
again when its pictures are.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from raymed.data.record import Message
from raymed.data.sources.annotations import data_sets, is_array, kept_lines, usage
from raymed.data.sources.dialogues import Dialogues
from raymed.data.sources.lines import Lines
from raymed.data.sources.listing import Listing, Note, SourceSettings
from raymed.data.sources.meta import DataSet, meta_root
from raymed.data.sources.paths import absence, file_stat, inside
from raymed.data.sources.sample import Sample, UnansweredError, out_of_turn, read_sample, with_marks
from raymed.data.sources.table import is_table, read_cells
from raymed.errors import UserError

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
        raise UserError(f"{path}: {absence(path)}. Give a meta JSON, a JSONL file, or a CSV")
    root, notes = Path(settings.root).expanduser().absolute() if settings.root else path.parent, list[str]()
    if path.suffix.lower() == ".json" and not is_array(path):
        root = meta_root(path, settings.root, notes)
    samples = SampleListing(root, settings.source_settings, private, notes)
    if settings.format == "table" or (settings.format == "auto" and is_table(path)):
        used = {path.stem: usage(path, DataSet(path.stem, ".", path, {}), most, samples.notes)}
        for number, sample in _table_rows(path, root, settings):
            samples.add(path.stem, most, sample, f"{path.name}:{number}", None)
        used[path.stem]["lines"] = samples.lines.count
    else:
        used = {}
        for part in data_sets(path, root, samples.notes):
            use = used[part.name] = usage(path, part, most, samples.notes)
            for number, offset, line in kept_lines(part, use, samples.notes):
                samples.add_line(part, use["max_dynamic_patch"], line, number, offset)
    samples.notes += samples.dialogues.lines()
    return samples.listing(), used


class SampleListing:
    """Samples in the making: grouped by patient and study, and everything that is wrong with them."""

    def __init__(self, root: Path, settings: SourceSettings, private: bool, notes: list[str]) -> None:
        self.notes = notes
        self.dialogues = Dialogues()
        self.lines = Lines(root, "samples", "sample")
        self._root, self._settings, self._private = root, settings, private
        self._owners: dict[str, str] = {}  # study -> patient
        self._unknown = self._unseen = 0

    def add_line(self, part: DataSet, most: int, line: bytes, number: int, offset: int) -> None:
        where = f"{part.annotation.name}:{number}"
        try:
            sample = read_sample(line)
            folder = self._root / part.folder
            for image in sample.images:
                inside(folder, image, where)
            images = tuple(inside(self._root, f"{part.folder}/{image}", where) for image in sample.images)
        except UnansweredError as error:
            self.refuse(part.name, where, str(error))
            return
        except (ValueError, UserError) as error:
            self.lines.count += 1
            self.lines.is_wrong(where, str(error).removeprefix(f"{where}: "))
            return
        if reason := out_of_turn(sample.messages):
            self.refuse(part.name, where, reason)
            return
        place = posixpath.normpath(os.path.relpath(part.annotation, self._root)), offset
        self.add(part.name, most, Sample(images, sample.messages, sample.patient, sample.study), where, place)

    def refuse(self, source: str, where: str, reason: str) -> None:
        """Take in a line that cannot be used, for the quarantine."""
        self.lines.count += 1
        self.lines.refuse(f"{source} {where}", where, None, reason)

    def add(
        self, source: str, most: int, sample: Sample, where: str, line: tuple[str, int] | None, unnamed: str | None = None
    ) -> None:
        """Take in a sample whose paths are relative to the root.

        Args:
            most: most tiles of its pictures.
            line: where it can be read again.
            unnamed: who stands for a patient that the line does not name (default: its first picture).
        """
        self.lines.count += 1
        self.dialogues.add(sample.messages)
        self._unseen += not sample.images
        content = repr((sample.images, sample.messages, sample.patient, sample.study))
        name = f"{source}/{blake2b(content.encode(), digest_size=8).hexdigest()}"
        patient = sample.patient
        if patient is None and sample.images and self._settings.patient_regex:
            patient = self._settings.patient_of(sample.images[0])
            if patient is None:
                pattern = self._settings.patient_regex
                self.lines.is_wrong(where, f"patient_regex {pattern!r} does not match {sample.images[0]}")
                return
        if patient is None:
            self._unknown += 1
            patient = unnamed or (sample.images[0] if sample.images else name)
        elif self._private and any(re.search(rf"(?<!\w){re.escape(patient)}(?!\w)", turn.text) for turn in sample.messages):
            self.lines.is_wrong(where, "the text names its patient, who is to have a pseudonym")
            return
        study = f"{source}/{sample.study or patient}"
        if self._owners.setdefault(study, patient) != patient:
            reason = f"study {sample.study} is of {self._owners[study]} and of {patient}"
            self.lines.is_wrong(where, f"{reason}: give each patient's studies names of their own, or leave them out")
            return
        if name in self.lines.first:
            reason = f"the same as {self.lines.first[name]}; to show a data set more often, use repeat_time, or weight"
            self.lines.refuse(f"{name} {where}", where, patient, reason)
            return
        stats = [file_stat(self._root / image) for image in sample.images]
        if None in stats:
            place = stats.index(None)
            lost = f"picture {place + 1} of {len(stats)}: {absence(self._root / sample.images[place])}"
            self.lines.refuse(name, where, patient, lost)
            self.lines.first[name] = where
            return
        known = [(stat.st_size, stat.st_mtime_ns) for stat in stats if stat is not None]
        path, offset = line or (sample.images[0], None)
        messages = () if line else sample.messages
        self.lines.add((patient, study, source), (patient, name, most, known), name, path, offset, where, messages)

    def listing(self) -> Listing:
        """Raises: UserError: anything was wrong."""
        if self._unseen:
            self.notes.append(Note.of(f"{self._unseen} of {self.lines.count} samples have no picture"))
        if self._unknown:
            words = (
                f"{self._unknown} of {self.lines.count} samples name no patient: each picture, and each text without one, "
                "counts as a patient of its own. Add a field `patient_id`, or prepare with --patient-regex"
            )
            self.notes.append(Note.of(words))
        return self.lines.listing(self.notes, patients_known=not self._unknown)


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
