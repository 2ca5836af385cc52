"""What a source yields: studies of slices that can be loaded later, and what was refused. Nothing is decoded here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raymed.data.record import Message
from raymed.errors import UserError

if TYPE_CHECKING:
    from raymed.data.sources.patients import Person

EXAMPLES = 3  # of each reason

Format = Literal["auto", "folders", "classes", "csv", "conversations", "dicom", "nifti"]


@dataclass(frozen=True)
class Columns:
    """Names of a CSV's columns, where they are not the usual ones.

    Attributes:
        image: path of the picture, relative to the CSV's folder.
        patient_id: whose picture it is.
        label: the class, as the label table knows it.
        study: which study or series of the patient; without it all pictures of a patient are one study.
        position: a number that orders the slices of a study; without it, the natural order of the file names.
        source: where the picture came from, e.g. the hospital.
        split: train, val or test.
    """

    image: str | None = None
    patient_id: str | None = None
    label: str | None = None
    study: str | None = None
    position: str | None = None
    source: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class SourceSettings:
    """How the input is read.

    Attributes:
        format: how the input is laid out; auto looks at its content.
        labelled: whether labels are read (class folders, label column, answers).
        patient_regex: a regular expression searched in each picture's path; its first group is the patient.
        patient_ids: the PatientID of DICOM files: agree means that each patient has one, and no two patients share one;
            tell, as predictions have it, notes beside a patient where that is not so, and takes no files of two persons for
            one; header calls patients by it; folder does not look at it, for files whose ids were replaced.
        patients: a CSV with the columns image and patient_id, which says whose the images of class folders are.
        root: the folder that paths in a CSV or a meta file are relative to, if not the file's own.
        columns: names of a CSV's columns, where they are not the usual ones.
        splits: whether a source that states train, val and test (a column, or data sets or JSONL files called so) is divided
            as it says.
        derived: also take CT images that were computed from others (MPR, MIP) and localizers, where they are axial.
        orientation: what to believe of a NIfTI volume that does not say where left, front and head are, or says it twice
            in two ways: sform, qform, or where its stored axes point to, such as LPS (left, back, head) or RAS.
    """

    format: Format = "auto"
    labelled: bool = True
    patient_regex: str | None = None
    patient_ids: Literal["agree", "tell", "header", "folder"] = "agree"
    patients: str | None = None
    root: str | None = None
    columns: Columns = field(default_factory=Columns)
    splits: bool = True
    derived: bool = False
    orientation: str | None = None

    def patient_of(self, path: str) -> str | None:
        """The patient that `patient_regex` finds in a path; None where it does not match."""
        match = re.search(self.patient_regex or "", path)
        return (match.group(1) or None) if match else None

    def __post_init__(self) -> None:
        axes = {"L": "LR", "R": "LR", "P": "AP", "A": "AP", "S": "SI", "I": "SI"}
        if self.orientation not in (None, "sform", "qform") and (
            len(self.orientation) != 3 or len({axes.get(letter) for letter in self.orientation} - {None}) != 3
        ):
            raise UserError(
                f"orientation {self.orientation!r}: give sform, qform, or three letters that say to where the first, second "
                "and third stored axis point, such as LPS (left, back, head) or RAS (right, front, head)"
            )
        if self.patient_regex is None:
            return
        try:
            groups = re.compile(self.patient_regex).groups
        except re.error as error:
            raise UserError(f"patient_regex {self.patient_regex!r} is not a regular expression: {error}") from error
        if groups < 1:
            raise UserError(f"patient_regex {self.patient_regex!r} needs a group in parentheses around the patient")


@dataclass(frozen=True, slots=True)
class Geometry:
    """How large a picture is, in mm; None where its file does not say.

    Attributes:
        pixel_spacing: between the centres of two pixels.
        slice_thickness: of a slice of a volume.
        field_of_view: width of the picture.
    """

    pixel_spacing: float | None = None
    slice_thickness: float | None = None
    field_of_view: float | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """One picture, one slice of a volume, or one line of conversation.

    Attributes:
        id: unique and stable: the path relative to the root, plus ``#k`` for the stored slice k of a volume.
        path: the file, relative to the root.
        frame: the stored slice of a volume, or the byte at which a line begins; None for a file with one picture.
        position: order within the study, from 0.
        where: place to name in messages, e.g. ``labels.csv:17`` or the path.
        messages: the turns of text that come with the picture.
        geometry: its size, as far as the file says.
        modality: CT, whose values are Hounsfield units, CR or DX; None of a picture, which says nothing of that.
        axes: of a slice of a volume, to where its stored axes point, such as LPS (left, back, head); None asks the file.
        mask: a file, relative to the root, that says where in the picture something lies.
        date: of the examination, YYYYMMDD as a DICOM file writes it; empty where nothing says it.
    """

    id: str
    path: str
    frame: int | None
    position: int
    where: str
    messages: tuple[Message, ...] = ()
    geometry: Geometry = Geometry()
    modality: str | None = None
    axes: str | None = None
    mask: str | None = None
    date: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """Slices of one patient that belong together, in order.

    Attributes:
        patient: the patient's id.
        study: the study's id; the patient's where the source knows no studies.
        label: as written in the source; None without one.
        source: where the data came from.
        slices: in the order of their position.
        fingerprint: changes when label, slices, messages or files (size, time of change) do.
    """

    patient: str
    study: str
    label: str | None
    source: str
    slices: tuple[Slice, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """One slice or file that is not used, and why.

    Attributes:
        expected: nothing is wrong with it, it is only not what is asked for, as a localizer: it is left out, and does not
            count as damage.
    """

    id: str
    where: str
    patient: str | None
    reason: str
    expected: bool = False


class Note(str):
    """A line about a source that may end with names of files or patients.

    Attributes:
        nameless: the line without them.
    """

    nameless: str

    @classmethod
    def of(cls, nameless: str, names: Sequence[str] = (), most: int = 10) -> Note:
        note = cls(f"{nameless}: {some(names, most)}" if names else nameless)
        note.nameless = nameless
        return note


@dataclass(frozen=True)
class Listing:
    """A source, listed.

    Attributes:
        root: the folder that paths are relative to.
        format: the format that was found or forced.
        studies: sorted by patient and study.
        refusals: what cannot be used.
        notes: what a person should know, e.g. which files were left out because they are not images.
        patients_known: False where every image counts as a patient of its own for want of something better.
        splits: train, val or test of each patient, where the source states it; else empty.
        about: what a person should know of a patient: slices that are missing, doubts whose the files are.
        persons: of each path whose header says it.
    """

    root: Path
    format: str
    studies: tuple[Study, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...] = ()
    patients_known: bool = True
    splits: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Sequence[str]] = field(default_factory=dict)
    persons: Mapping[str, Person] = field(default_factory=dict)


def by_reason(wrong: Iterable[tuple[str, str]]) -> list[str]:
    """Places and what is wrong there, as lines: for each kind of reason, the commonest first, how often, and three places.

    Reasons that differ only in numbers and in what they quote are of one kind.
    """
    kinds: dict[str, list[str]] = {}
    for where, reason in wrong:
        kinds.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "", reason), []).append(f"{where}: {reason}")
    lines = []
    for members in sorted(kinds.values(), key=len, reverse=True):
        more = [f"... {len(members)} such in all"] if len(members) > EXAMPLES else []
        lines += [*members[:EXAMPLES], *more]
    return lines


def make_study(
    patient: str, study: str, label: str | None, source: str, slices: Sequence[Slice], stats: Mapping[str, os.stat_result]
) -> Study:
    """A study with its fingerprint; `stats` has the size and time of each path."""
    digest = blake2b(digest_size=16)
    for item in (patient, study, label or "", source):
        try:
            digest.update(item.encode() + b"\0")
        except UnicodeEncodeError as error:
            raise UserError(f"{slices[0].where}: {item!r} holds half of a character, and cannot be written down") from error
    for piece in slices:
        file = stats[piece.path]
        digest.update(f"{piece.id}\0{piece.position}\0{file.st_size}\0{file.st_mtime_ns}\0{piece.messages}\0".encode())
        digest.update(f"{piece.axes}\0".encode() if piece.axes else b"")
    return Study(patient, study, label, source, tuple(slices), digest.hexdigest())


def sorted_studies(studies: Iterable[Study]) -> tuple[Study, ...]:
    """Studies by patient, then study, in natural order."""
    return tuple(
        sorted(studies, key=lambda study: (natural_key(study.patient), natural_key(study.study), study.label or ""))
    )


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sorts ``slice_2`` before ``slice_10``; digits compare as numbers, letters without case."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", text.casefold()))], text


def some(items: Sequence[str], limit: int = 10) -> str:
    """The first items of a list for a message, and how many more there are."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest
