"""Who the patient of a DICOM file is: its folder, or its PatientID."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from raymed.data.sources.dicom_header import Header
from raymed.data.sources.listing import SourceSettings, some
from raymed.data.sources.paths import Tree
from raymed.data.sources.patients import Person, compare_persons
from raymed.errors import UserError


@dataclass(frozen=True)
class Naming:
    """What names the patient of a file.

    Attributes:
        depth: of the patients' folders: 2 below those of the classes, 1 where several folders lie in the root; 0 where the
            PatientID alone says who it is.
        persons: of each readable file.
        ids: the PatientID of a folder's files, where they have one.
    """

    settings: SourceSettings
    depth: int
    persons: Mapping[str, Person]
    ids: Mapping[str | None, str]

    @classmethod
    def of(cls, tree: Tree, persons: Mapping[str, Person], settings: SourceSettings, usable: Set[str]) -> Naming:
        tops = {PurePosixPath(name).parts[0] for name in (*tree.folders, *(name for name in tree.files if "/" in name))}
        labelled = settings.labelled and any(name.count("/") > 1 for name in persons)
        depth = 2 if labelled else int(len(tops) > 1)
        if not depth and tops and settings.patient_ids == "tell":  # a patient is called as on a day with two
            depth = _depth({name: persons[name] for name in usable})
        naming = cls(settings, depth, persons, {})
        ids: dict[str | None, set[str]] = defaultdict(set)
        for name, person in persons.items():
            ids[naming.folder(name)].add(person.patient_id)
        return replace(naming, ids={folder: min(each) for folder, each in ids.items() if len(each) == 1})

    def label(self, name: str) -> str | None:
        folders = PurePosixPath(name).parts[:-1]
        least = 0 if self.settings.patient_regex else 1  # folders between that of the class and the file
        return folders[0] if self.settings.labelled and len(folders) > least else None

    def folder(self, name: str) -> str | None:
        """The patient as the path says it."""
        if self.settings.patient_regex:
            return self.settings.patient_of(name)
        folders = PurePosixPath(name).parts[: self.depth + 1][:-1]
        return folders[-1] if folders else None

    def patient(self, name: str) -> str | None:
        folder = self.folder(name)
        if self.settings.patient_ids != "header" and (folder is not None or self.settings.patient_regex):
            return folder
        known = self.persons[name].patient_id if name in self.persons else self.ids.get(folder)
        return known or folder


def _depth(persons: Mapping[str, Person]) -> int:
    """The first level of folders that are one person each; 0 where PatientIDs have to tell them apart, or are missing."""
    if not all(person.patient_id for person in persons.values()):
        return 0
    for depth in range(1, min((name.count("/") for name in persons), default=1) + 1):
        doubts = compare_persons({name: posixpath.join(*PurePosixPath(name).parts[:depth]) for name in persons}, persons)
        if not doubts.mixed and not doubts.shared:
            return depth
    return 0


def name_patients(path: Path, headers: list[Header], naming: Naming) -> tuple[dict[str, str], dict[str, str | None]]:
    """Patient and label of every file.

    With labels, a file at least two folders deep lies in ``<class>/<patient>/``. Otherwise, several folders below the root
    are several patients; files in one folder belong to their PatientID. One examination without it is of one patient all
    the same, who is called as its folder is.

    Args:
        path: of the source, a folder or a file.
    """
    settings = naming.settings
    root = path.parent if path.is_file() else path
    labels = {header.path: naming.label(header.path) for header in headers}
    named = {header.path: naming.patient(header.path) for header in headers}
    patients = {name: patient for name, patient in named.items() if patient is not None}
    unnamed = [name for name, patient in named.items() if patient is None]
    examinations = {header.examination for header in headers if named[header.path] is None}
    if len(examinations) == 1 and examinations != {""} and not settings.patient_regex:
        folder = PurePosixPath(posixpath.commonpath([posixpath.dirname(name) for name in unnamed])).name
        patients |= dict.fromkeys(unnamed, folder or (path.stem if path.is_file() else path.name))
        unnamed = []
    loose = [name for name, label in labels.items() if settings.labelled and label is None and "/" in name]
    if loose:
        raise UserError(
            f"{root}: expected <class>/<patient>/files, and {some(loose)} lie in one folder only: put them into "
            "<class>/<patient>/, or pass --source.labelled false if the folders are patients' and name no classes"
        )
    if unnamed:
        raise UserError(
            f"{root}: no patient for {some(unnamed)}: "
            + (
                f"patient_regex {settings.patient_regex!r} does not match"
                if settings.patient_regex
                else "PatientID is empty; put each patient into a folder and pass --source.patient-regex '^([^/]+)/'"
            )
        )
    return patients, labels
