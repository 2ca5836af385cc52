"""Whose the files of a folder tree are: by the folder they lie in, and by what the files themselves say of the person."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path, PurePosixPath

from raymed.data.sources.listing import Refusal, SourceSettings, some
from raymed.data.sources.paths import Tree
from raymed.errors import UserError

_ANY = "*"  # any birth date, or sex
OPTIONS = (
    "pass --source.patient-ids header, which calls patients by their PatientID, or --source.patient-ids folder if ids were "
    "replaced and mean nothing"
)


@dataclass(frozen=True, slots=True)
class Person:
    """Whom a file is of, by its header; empty where it does not say.

    Attributes:
        patient_id: as the hospital gave it.
        birth_date: as it is written.
        sex: as it is written.
    """

    patient_id: str = ""
    birth_date: str = ""
    sex: str = ""

    def may_be(self, other: Person) -> bool:
        """Whether nothing that both say tells them apart."""
        pairs = [(getattr(self, each.name), getattr(other, each.name)) for each in fields(Person)]
        return all(mine == theirs for mine, theirs in pairs if mine and theirs)


def with_patients(refusals: Iterable[Refusal], tree: Tree, depth: int, settings: SourceSettings) -> list[Refusal]:
    """Refusals, each of the patient in whose folder it lies, or whose folder it is.

    Args:
        depth: of the patients' folders: 1 below the root, 2 below those of the classes; 0 where no folder is a patient's.
    """

    def patient(path: str) -> str | None:
        if settings.patient_regex:
            return settings.patient_of(path)
        parts = PurePosixPath(path).parts
        inside = len(parts) > depth or (len(parts) == depth and path in tree.folders)
        return parts[depth - 1] if depth and inside else None

    return [each if each.patient is not None else replace(each, patient=patient(each.id)) for each in refusals]


def silent_patients(
    tree: Tree, listed: Iterable[str], patients: Iterable[str | None], depth: int, settings: SourceSettings, kind: str
) -> list[Refusal]:
    """A refusal for each patient of whom nothing was listed: an empty folder, or one with other files only.

    Args:
        listed: paths of the slices and refusals that have a patient.
        patients: those patients.
        depth: as for `with_patients`.
        kind: what is looked for in the files, such as "a picture".
    """
    if settings.patient_regex:
        known, others = set(patients), Counter(settings.patient_of(name) for name in tree.files)
        first = {settings.patient_of(name): name for name in reversed(tree.files)}
        return [
            Refusal(first[patient], first[patient], patient, f"none of the patient's files ({count}) is {kind}")
            for patient, count in others.items()
            if patient is not None and patient not in known
        ]
    if not depth:
        return []
    heard = {PurePosixPath(path).parts[:depth] for path in listed}
    files = Counter(PurePosixPath(name).parts[:depth] for name in tree.files)
    silent = [folder for folder in tree.folders if len(parts := PurePosixPath(folder).parts) == depth and parts not in heard]
    refusals = []
    for folder in silent:
        parts = PurePosixPath(folder).parts
        reason = f"none of the files in the folder ({files[parts]}) is {kind}" if files[parts] else "an empty folder"
        refusals.append(Refusal(folder, folder, parts[-1], reason))
    return refusals


@dataclass(frozen=True)
class Doubts:
    """Patients who are not one person each.

    Attributes:
        mixed: files of two persons, of each patient who has such.
        shared: patients who are one person.
    """

    mixed: dict[str, tuple[str, str]]
    shared: list[tuple[str, str]]


def require_persons(root: Path, patients: Mapping[str, str], persons: Mapping[str, Person]) -> None:
    """Make sure that each patient is one person, and each person one patient. No id is named: ids may have to stay inside.

    Args:
        patients: the patient of each path.
        persons: the person of each path, as the file says it.

    Raises:
        UserError: a patient has files of several persons, or a person is several patients; with files of each.
    """
    doubts = compare_persons(patients, persons)
    if mixed := [f"{patient}: {one} and {other}" for patient, (one, other) in doubts.mixed.items()]:
        raise UserError(
            f"{root}: {len(mixed)} patients have files of several persons (PatientID, birth date or sex differ): "
            f"{some(mixed)}. Give each person a folder; or {OPTIONS}"
        )
    if shared := [f"{one} and {other}" for one, other in doubts.shared]:
        raise UserError(
            f"{root}: patients who are one person by their PatientID: {some(shared)}. A person in two splits would be a "
            f"leak: put all into one folder; or {OPTIONS}"
        )


def compare_persons(patients: Mapping[str, str], persons: Mapping[str, Person]) -> Doubts:
    """Which patients are not one person each, by their headers.

    Args:
        patients: the patient of each path.
        persons: the person of each path, as the file says it.
    """
    files: dict[str, dict[Person, str]] = defaultdict(dict)  # one file for everything that is said of a patient
    for path, patient in patients.items():
        files[patient].setdefault(persons[path], path)
    mixed = {}
    for patient, said in files.items():
        one, *others = said
        if strangers := [person for person in others if not one.may_be(person)]:
            mixed[patient] = said[one], said[strangers[0]]
    holders: dict[str, dict[str, Person]] = defaultdict(dict)
    for patient, said in files.items():
        for person in said:
            if person.patient_id:
                holders[person.patient_id].setdefault(patient, person)
    shared = []
    for owners in holders.values():
        seen: dict[tuple[str, str], str] = {}  # of each birth date and sex: all may have one PatientID, such as ANON
        for patient, person in owners.items():
            earlier = [seen[key] for key in product(_may_be(person.birth_date), _may_be(person.sex)) if key in seen]
            shared += [(other, patient) for other in earlier[:1]]
            for key in product((person.birth_date, _ANY), (person.sex, _ANY)):
                seen.setdefault(key, patient)
    return Doubts(mixed, shared)


def _may_be(said: str) -> tuple[str, ...]:
    """What another header may say of the same person."""
    return (said, "") if said else (_ANY,)
