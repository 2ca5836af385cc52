"""CT series and X-rays in DICOM files: ``<class>/<patient>/.../file``, or any folder of files where there are no labels.

A series is one study; its slices run from the feet to the head (`dicom_series`). Only what grouping needs is read from the
headers (`dicom_header`), and PatientID where no folder names the patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pydicom

from raymed.data.image import SUFFIXES as PICTURES
from raymed.data.image import ImageError
from raymed.data.progress import ReadingProgress
from raymed.data.sources import process_pool
from raymed.data.sources.dicom_header import Header, NotWantedError, open_file, read_header
from raymed.data.sources.dicom_patients import Naming, name_patients
from raymed.data.sources.dicom_series import order
from raymed.data.sources.listing import (
    EXAMPLES,
    Geometry,
    Listing,
    Note,
    Refusal,
    Slice,
    SourceSettings,
    make_study,
    some,
    sorted_studies,
)
from raymed.data.sources.paths import Tree, walk
from raymed.data.sources.patients import Person, compare_persons, require_persons, silent_patients, with_patients
from raymed.errors import UserError

SUFFIXES = (".dcm", ".dicom", ".ima")
OTHERS = (*PICTURES, ".nii", ".gz", ".csv", ".tsv", ".json", ".jsonl")  # not opened to find out


@dataclass(frozen=True)
class Place:
    """Where a file belongs: in which study of its series, and at which position; how large it is, how and when taken."""

    study: str
    position: int
    geometry: Geometry
    modality: str | None
    date: str = ""


ELSEWHERE = Place("", 0, Geometry(), None)


@dataclass
class Sorted:
    """DICOM files, sorted into studies.

    Attributes:
        persons: of each file whose header can be read.
        places: path -> where it belongs, of files that can be used.
        refused: path -> reason.
        left_out: path -> reason, of files with which nothing is wrong.
        gaps: path of the slice before -> in words.
        about: what a person should know of a patient, whose the files are and what is missing.
        doubted: patients who are not one person each.
    """

    persons: dict[str, Person] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)
    about: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    doubted: set[str] = field(default_factory=set)

    def refusals(self, names: Mapping[str, tuple[str, str, str | None]]) -> list[Refusal]:
        """What is not used; `names` gives id, where and patient of each path."""
        return [
            Refusal(*names[path], reason, expected)
            for reasons, expected in ((self.refused, False), (self.left_out, True))
            for path, reason in reasons.items()
        ]

    def place(self, path: str) -> Place:
        """Where a file belongs; nowhere in particular if it is of another kind."""
        return self.places.get(path, ELSEWHERE)

    def notes(self) -> tuple[str, ...]:
        gaps = [Note.of(f"{len(self.gaps)} gaps in series", list(self.gaps.values()), 5)] if self.gaps else []
        doubts = f"{len(self.doubted)} patients are not one person each by their headers: see their notes"
        return (*gaps, *([Note.of(doubts, sorted(self.doubted))] if self.doubted else []))

    def tell_gaps(self, patients: Mapping[str, str]) -> None:
        """Note gaps beside the patients of the paths."""
        gaps: dict[str, list[str]] = defaultdict(list)
        for path, words in self.gaps.items():
            gaps[patients[path]].append(words)
        for patient, each in gaps.items():
            self.about[patient].append(f"slices are missing: {some(each, EXAMPLES)}")


def is_dicom(path: Path) -> bool:
    """By the extension; files without one, or with one that says nothing (.CT, .DIC, the end of a UID), by the DICM mark."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if suffix in OTHERS:
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_headers(root: Path, names: Iterable[str], settings: SourceSettings) -> tuple[list[Header], Sorted]:
    """The headers of files that can be used, and why others cannot."""
    headers: list[Header] = []
    result = Sorted()
    asked = tuple(names)
    progress = ReadingProgress(len(asked), headers=True)
    for name, (person, found) in zip(asked, process_pool.each(partial(_read, root, settings), asked), strict=True):
        if person is not None:
            result.persons[name] = person
        if isinstance(found, Header):
            headers.append(found)
        elif isinstance(found, NotWantedError):
            result.left_out[name] = str(found)
        elif isinstance(found, ImageError):
            result.refused[name] = str(found)
        progress.add(1)
    return headers, result


def _read(root: Path, settings: SourceSettings, name: str) -> tuple[Person | None, Header | ImageError]:
    """Whom a file is of, if that can be read, and its header, or why it is not used."""
    person = None
    try:
        dataset = open_file(root / name, pixels=False)
        person = _person(dataset)
        return person, read_header(dataset, name, settings.derived)
    except ImageError as error:
        return person, error
    except Exception as error:  # values are converted as they are asked for: whatever that raises, the header is damaged
        return person, ImageError(f"a damaged header: {type(error).__name__}: {error}")


def sort_series(root: Path, headers: Iterable[Header], result: Sorted) -> None:
    """Add the places of files to `result`; each series is one study, or one for each of its phases."""
    series: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        series[header.series].append(header)
    for uid, members in series.items():
        ordered = order(root, members)
        result.refused |= ordered.refused
        result.left_out |= ordered.left_out
        result.gaps |= ordered.gaps
        for number, phase in enumerate(ordered.phases, start=1):
            study = uid if len(ordered.phases) == 1 else f"{uid}/phase-{number}"
            result.places |= {
                header.path: Place(study, at, header.geometry, header.modality, header.date)
                for at, header in enumerate(phase)
            }


def sort_named(root: Path, studies: Mapping[str, tuple[str, str]], settings: SourceSettings) -> Sorted:
    """Files that a table names, sorted as those of a folder are; files of other kinds are passed over.

    Args:
        studies: path -> patient and study, as the table says. `Place.study` is what to add to the study's name: nothing, but
            where it holds several series of CT, or phases of one.

    Raises:
        UserError: one series is of two patients, or patients are not persons.
    """
    headers, result = read_headers(root, (name for name in studies if is_dicom(root / name)), settings)
    patients = {header.path: studies[header.path][0] for header in headers}
    strict = settings.patient_ids in ("agree", "header")  # a table's patients are called as it says, whatever headers do
    headers = _of_one_person(root, headers, patients, result, settings, strict)
    groups: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in headers:
        groups[studies[header.path]].append(header)
    for members in groups.values():
        sort_series(root, members, result)
        sections = [header for header in members if header.height is not None and header.path in result.places]
        several = len({result.places[header.path].study for header in sections}) > 1
        for header in members:
            if place := result.places.get(header.path):
                more = f"/{place.study}" if several and header.height is not None else ""
                result.places[header.path] = replace(place, study=more)
    result.tell_gaps(patients)
    return result


def list_studies(path: Path, settings: SourceSettings) -> Listing:
    """One study per series. Files that are no usable axial CT slice or X-ray are refused, or left out.

    Raises:
        UserError: a patient cannot be named, one series lies in the folders of two patients, or patients are not persons.
    """
    root = path.parent if path.is_file() else path
    tree = Tree({path.name: path.stat()}) if path.is_file() else walk(root)
    files = tree.files if path.is_file() else {name: stat for name, stat in tree.files.items() if is_dicom(root / name)}
    others = [name for name in tree.files if name not in files]
    headers, result = read_headers(root, files, settings)
    naming = Naming.of(tree, result.persons, settings, {header.path for header in headers})
    patients, labels = name_patients(path, headers, naming)
    headers = _of_one_person(root, headers, patients, result, settings, settings.patient_ids == "agree")
    owned: dict[tuple[str | None, str], list[Header]] = defaultdict(list)  # a series under two labels is two: refused
    for header in headers:
        owned[labels[header.path], patients[header.path]].append(header)
    studies = []
    for (label, patient), members in owned.items():
        sort_series(root, members, result)
        groups: dict[str, list[str]] = defaultdict(list)
        for header in members:
            if header.path in result.places:
                groups[result.places[header.path].study].append(header.path)
        for study, names in groups.items():
            names.sort(key=lambda name: result.places[name].position)
            slices = [
                Slice(name, name, None, at, name, geometry=place.geometry, modality=place.modality, date=place.date)
                for at, name in enumerate(names)
                for place in [result.places[name]]
            ]
            studies.append(make_study(patient, study, label, root.name, slices, files))
    result.tell_gaps(patients)
    refusals = with_patients(tree.refusals, tree, naming.depth, settings)
    refusals += result.refusals({name: (name, name, patients.get(name) or naming.patient(name)) for name in files})
    listed = [*files, *(refusal.id for refusal in tree.refusals)]
    named = [*patients.values(), *(refusal.patient for refusal in refusals)]
    refusals += silent_patients(tree, listed, named, naming.depth, settings, "a DICOM file")
    notes = (Note.of(f"{len(others)} files that are not DICOM were left out", others),) if others else ()
    return Listing(
        *(root, "dicom", sorted_studies(studies), tuple(refusals), notes + result.notes()),
        about=result.about,
        persons=result.persons,
    )


def _of_one_person(
    root: Path, headers: list[Header], patients: Mapping[str, str], result: Sorted, settings: SourceSettings, strict: bool
) -> list[Header]:
    """Headers of patients who are one person each, as far as headers tell; who is not goes to `result`.

    Args:
        strict: a patient who is not is an error.

    Raises:
        UserError: one series is of two patients, or patients are not persons, and that is not only to be told.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        owners[header.series].add(patients[header.path])
    series = [sorted(names) for names in owners.values() if len(names) > 1]
    if settings.patient_ids != "tell":
        for names in series:
            raise UserError(f"{root}: one series is of several patients: {some(names)}. Put all of its files under one")
        if strict:
            require_persons(root, patients, result.persons)
        return headers
    doubts = compare_persons(patients, result.persons)
    for one, other in dict.fromkeys([*doubts.shared, *((names[0], name) for names in series for name in names[1:])]):
        result.about[one].append(_same(other))
        result.about[other].append(_same(one))
        result.doubted |= {one, other}
    for patient, (file, another) in doubts.mixed.items():
        result.about[patient].append(several_persons(file, another))
        result.doubted.add(patient)
    strangers = {header.path for header in headers if patients[header.path] in doubts.mixed}
    result.refused |= dict.fromkeys(sorted(strangers), "lies with files of another person")
    return [header for header in headers if header.path not in strangers]


def _same(other: str) -> str:
    return f"the same person as {other}, or the same series, by the headers: two lines may be of one patient"


def several_persons(file: str, another: str) -> str:
    """Why a patient gets no decision."""
    return (
        f"files of several persons (PatientID, birth date or sex differ), as {file} and {another}: give each person a "
        "folder, or a patient_id, of their own"
    )


def _person(dataset: pydicom.Dataset) -> Person:
    said = (str(dataset.get(tag) or "").strip() for tag in ("PatientID", "PatientBirthDate", "PatientSex"))
    return Person(*said)
