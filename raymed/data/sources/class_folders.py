"""Class folders: ``<class>/<image>``, each image directly in the folder of its class.

Every image is a patient of its own, unless `patients` (a CSV with image and patient_id) or `patient_regex` says whose it is.
Without labels, all pictures below the folder are taken, at any depth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from raymed.data.image import SUFFIXES
from raymed.data.sources.listing import Listing, Note, Slice, SourceSettings, make_study, some, sorted_studies
from raymed.data.sources.paths import walk
from raymed.data.sources.patients import with_patients
from raymed.data.sources.table import read_rows
from raymed.errors import UserError


def list_studies(path: Path, settings: SourceSettings) -> Listing:
    """The images of a folder, or a single one.

    Raises:
        UserError: the folders are no classes (`class_names`), or an image's patient is not to be found.
    """
    root = path.parent if path.is_file() else path
    tree = walk(root)
    files = {path.name: tree.files[path.name]} if path.is_file() else tree.files
    images = [name for name in files if Path(name).suffix.lower() in SUFFIXES]
    if settings.labelled:
        images = [name for name in images if name.count("/") == 1]
    if settings.labelled:
        class_names(root, images)
    patients = _patients(root, images, settings)
    groups: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for name in images:
        groups[patients[name], name.split("/")[0] if settings.labelled else None].append(name)
    studies = []
    for (patient, label), names in groups.items():
        slices = [Slice(name, name, None, position, name) for position, name in enumerate(names)]
        studies.append(make_study(patient, patient, label, root.name, slices, tree.files))
    others = sorted(files.keys() - set(images))
    deeper = [name for name in others if Path(name).suffix.lower() in SUFFIXES]
    others = [name for name in others if Path(name).suffix.lower() not in SUFFIXES]
    notes = [Note.of(f"{len(others)} files that are no images were left out", others)] if others else []
    if deeper:
        folders = sorted({str(PurePosixPath(name).parent) for name in deeper})
        left = f"{len(deeper)} images that do not lie directly in a class folder were left out; move them up to use them"
        notes.append(Note.of(left, folders))
    known = bool(settings.patients or settings.patient_regex)
    refusals = with_patients(tree.refusals, tree, 0, settings)
    if not known:
        refusals = [replace(refusal, patient=refusal.id) for refusal in refusals]
        notes.append(Note.of("no patients are known: every image counts as a patient of its own"))
    return Listing(root, "classes", sorted_studies(studies), tuple(refusals), tuple(notes), known)


def class_names(root: Path, images: Iterable[str]) -> list[str]:
    """The classes, sorted by name: each folder directly below `root`.

    Args:
        images: the images that were found, as ``<class>/<image>``.

    Raises:
        UserError: fewer than two folders, one without images, or names that cannot be told apart or written down.
    """
    names = sorted(item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    filled = {name.split("/")[0] for name in images}
    if empty := [name for name in names if name not in filled]:
        raise UserError(
            f"{root}: no images ({', '.join(SUFFIXES)}) directly in the class folders {some(empty)}. "
            "Add images, or remove the folders"
        )
    if len(names) < 2:
        found = f"only the class folder {names[0]!r}" if names else "no folder"
        raise UserError(f"{root}: {found}; a classifier needs <class>/<image> with two classes or more")
    if dotted := [name for name in names if "." in name]:
        raise UserError(f"{root}: class names with a dot: {some(dotted)}. Rename the folders, e.g. with a dash")
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        same[name.strip().casefold()].append(name)
    if alike := [" and ".join(map(repr, each)) for each in same.values() if len(each) > 1]:
        raise UserError(f"{root}: class names that differ only by case: {some(alike)}. Rename or merge the folders")
    return names


def _patients(root: Path, images: list[str], settings: SourceSettings) -> dict[str, str]:
    """Patient of each image."""
    if settings.patients and settings.patient_regex:
        raise UserError("--source.patients and --source.patient-regex both say whose an image is: give one of them")
    if settings.patients:
        return _listed(root, images, settings)
    if settings.patient_regex is None:
        return {name: name for name in images}
    found = {name: settings.patient_of(name) for name in images}
    if wrong := [name for name, patient in found.items() if patient is None]:
        raise UserError(f"{root}: patient_regex {settings.patient_regex!r} does not match {some(wrong)}")
    return {name: patient for name, patient in found.items() if patient is not None}


def _listed(root: Path, images: list[str], settings: SourceSettings) -> dict[str, str]:
    """From a CSV, whose images are written as ``<class>/<image>`` or, where no other one is called so, as ``<image>``."""
    path = Path(settings.patients or "").expanduser()
    if not path.is_file():
        raise UserError(f"--source.patients {path}: no such file; give a CSV with the columns image and patient_id")
    called: dict[str, list[str]] = defaultdict(list)
    for name in images:
        called[PurePosixPath(name).name].append(name)
    whole = set(images)
    owners: dict[str, str] = {}
    for row in read_rows(path, root, replace(settings, labelled=False)):
        named = [row.path] if row.path in whole else called.get(row.path, [])
        if len(named) > 1:
            raise UserError(f"{path}:{row.line}: {row.path} stands for {some(named)}; write <class>/<image>")
        for name in named:  # none: the table may know more images than there are
            if owners.setdefault(name, row.patient) != row.patient:
                raise UserError(f"{path}:{row.line}: {name} is of {row.patient!r} and of {owners[name]!r}")
    if lost := [name for name in images if name not in owners]:
        raise UserError(f"{path}: no line for {len(lost)} images: {some(lost)}. Add them, or remove the images")
    return owners
