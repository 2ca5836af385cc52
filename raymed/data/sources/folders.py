"""Picture files in folders: ``<class>/<patient>/*.png``, or ``<patient>/*.png`` where there are no labels.

One more folder level, ``<patient>/<study>/*.png``, is a study of its own. Slices are ordered by the natural order of
their names. With `patient_regex` the patient is read from the path instead, at any depth.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from raymed.data.image import SUFFIXES
from raymed.data.sources.listing import Listing, Note, Slice, SourceSettings, make_study, some, sorted_studies
from raymed.data.sources.paths import walk
from raymed.data.sources.patients import silent_patients, with_patients
from raymed.errors import UserError


def is_picture(path: Path) -> bool:
    """By the file's extension."""
    return path.suffix.lower() in SUFFIXES


def list_studies(path: Path, settings: SourceSettings) -> Listing:
    """The studies of a folder of pictures, or of a single picture.

    Raises:
        UserError: pictures at a depth where patient or class would be a guess, or a regex that does not match.
    """
    if path.is_file():
        return _single(path, settings)
    tree = walk(path)
    pictures = [name for name in tree.files if is_picture(Path(name))]
    others = [name for name in tree.files if not is_picture(Path(name))]
    keys = _keys(path, pictures, settings)
    groups: dict[tuple[str, str, str | None], list[str]] = defaultdict(list)
    for name in pictures:
        groups[keys[name]].append(name)
    studies = [
        make_study(
            patient,
            study,
            label,
            path.name,
            [Slice(name, name, None, position, name) for position, name in enumerate(names)],
            tree.files,
        )
        for (patient, study, label), names in groups.items()
    ]
    depth = 2 if settings.labelled else 1
    refusals = with_patients(tree.refusals, tree, depth, settings)
    owners = [key[0] for key in keys.values()] + [refusal.patient for refusal in refusals]
    listed = [*pictures, *(refusal.id for refusal in refusals)]
    refusals += silent_patients(tree, listed, owners, depth, settings, "a picture")
    notes: list[str] = [Note.of(f"{len(others)} files that are not pictures were left out", others)] if others else []
    loose = [name for name in pictures if "/" not in name]
    if len(loose) > 1 and not settings.patient_regex:
        notes.append(
            f"{len(loose)} pictures lie in {path} itself and count as one patient, {path.name}. If each is a patient of its "
            "own, pass --source.patient-regex '([^/]+)[.]'; if a part of the file name is the patient, a pattern of that"
        )
    return Listing(path, "folders", sorted_studies(studies), tuple(refusals), tuple(notes))


def _single(path: Path, settings: SourceSettings) -> Listing:
    if settings.labelled:
        raise UserError(f"{path} is a single picture, which has no label: give a folder <class>/<patient>/ or a CSV")
    patient = path.stem
    if settings.patient_regex:
        found = settings.patient_of(path.name)
        if found is None:
            raise UserError(f"patient_regex {settings.patient_regex!r} does not match {path.name}")
        patient = found
    stats = {path.name: path.stat()}
    slices = [Slice(path.name, path.name, None, 0, path.name)]
    return Listing(path.parent, "folders", (make_study(patient, patient, None, path.parent.name, slices, stats),), ())


def _keys(root: Path, pictures: list[str], settings: SourceSettings) -> dict[str, tuple[str, str, str | None]]:
    """Patient, study and label of every picture."""
    keys: dict[str, tuple[str, str, str | None]] = {}
    wrong: list[str] = []
    for name in pictures:
        folders = list(Path(name).parts[:-1])
        label = folders.pop(0) if settings.labelled and folders else None
        unlabelled = settings.labelled and label is None
        if settings.patient_regex:
            patient = settings.patient_of(name)
            if unlabelled or patient is None:
                wrong.append(name)
            else:
                keys[name] = (patient, "/".join((patient, *folders)) if folders else patient, label)
        elif unlabelled or len(folders) > 2 or (settings.labelled and not folders):
            wrong.append(name)
        else:
            patient = folders[0] if folders else root.name
            keys[name] = (patient, "/".join(folders) if len(folders) > 1 else patient, label)
    if wrong:
        raise UserError(_explain(root, wrong, settings))
    return keys


def _explain(root: Path, wrong: list[str], settings: SourceSettings) -> str:
    if settings.patient_regex:
        level = ", or they lie in no class folder" if settings.labelled else ""
        return f"{root}: patient_regex {settings.patient_regex!r} does not match {some(wrong)}{level}"
    if settings.labelled:
        return (
            f"{root}: expected <class>/<patient>/pictures (or <class>/<patient>/<study>/pictures), found {some(wrong)}. "
            "If the patient is part of the file name, pass --source.patient-regex, e.g. '([^/_]+)_[0-9]+[.]'; if every "
            "picture is its own patient, '([^/]+)[.]'. If there are no labels, pass --source.labelled false"
        )
    return (
        f"{root}: without labels, expected pictures, <patient>/pictures or <patient>/<study>/pictures, found {some(wrong)}. "
        "If the first level are classes, pass --source.labelled true; or name the patient with --source.patient-regex"
    )
