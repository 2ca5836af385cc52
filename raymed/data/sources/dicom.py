"""CT series in DICOM files: ``<class>/<patient>/.../file``, or any folder of files where there are no labels.

A series is one study; its slices run from the feet to the head, by their position along the slice normal (instance
numbers may run either way). Only what the pixels need is read from the headers, and PatientID where no folder names the
patient. Pixels are shown as stored, so only axial slices stored the usual way (rows to the patient's left, columns to the
back, within 20 degrees) are taken; all others are refused rather than turned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from raymed.data.image import MAX_PIXELS, ImageError, ImageSettings, apply_window
from raymed.data.sources.listing import (
    Listing,
    Refusal,
    Slice,
    SourceSettings,
    Tree,
    make_study,
    natural_key,
    some,
    sorted_studies,
    walk,
)
from raymed.data.sources.patients import Person, require_persons, silent_patients, with_patients
from raymed.errors import UserError

SUFFIXES = (".dcm", ".dicom", ".ima")
AXIAL_WITHIN = 20.0  # degrees
HEADER = (
    "Modality",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "NumberOfFrames",
    "Rows",
    "Columns",
)


@dataclass(frozen=True)
class _Header:
    path: str
    series: str
    height: float  # along the slice normal, towards the head, in mm
    instance: int


def is_dicom(path: Path) -> bool:
    """By the extension; files without one (or whose name is a UID) by the DICM mark at byte 128."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def list_studies(path: Path, settings: SourceSettings) -> Listing:
    """One study per series. Files that are no usable axial CT slice are refused.

    Raises:
        UserError: a patient cannot be named, or one series lies in the folders of two patients.
    """
    root = path.parent if path.is_file() else path
    tree = Tree({path.name: path.stat()}) if path.is_file() else walk(root)
    files = tree.files if path.is_file() else {name: stat for name, stat in tree.files.items() if is_dicom(root / name)}
    others = [name for name in tree.files if name not in files]
    headers: list[_Header] = []
    persons: dict[str, Person] = {}
    refused: dict[str, str] = {}
    for name in files:
        try:
            dataset = _read(root / name, pixels=False)
            persons[name] = _person(dataset)
            headers.append(_checked(dataset, name))
        except ImageError as error:
            refused[name] = str(error)
        except Exception as error:  # values are converted as they are asked for: whatever that raises, the header is damaged
            refused[name] = f"a damaged header: {type(error).__name__}: {error}"
    naming = _Naming.of(tree, persons, settings)
    patients, labels = _name_patients(root, headers, naming)
    refusals = with_patients(tree.refusals, tree, naming.depth, settings)
    refusals += [Refusal(name, name, naming.patient(name), why) for name, why in refused.items()]
    listed = [*files, *(refusal.id for refusal in tree.refusals)]
    named = [*patients.values(), *(refusal.patient for refusal in refusals)]
    refusals += silent_patients(tree, listed, named, naming.depth, settings, "a DICOM file")
    owners: dict[str, set[str]] = defaultdict(set)
    series: dict[tuple[str, str | None], list[_Header]] = defaultdict(list)  # under two labels it is two, which is refused
    for header in headers:
        owners[header.series].add(patients[header.path])
        series[header.series, labels[header.path]].append(header)
    studies = []
    for (uid, label), members in series.items():
        if len(owners[uid]) > 1:
            raise UserError(f"{root}: one series lies in the folders of several patients: {some(sorted(owners[uid]))}")
        members.sort(key=lambda header: (header.height, header.instance, natural_key(header.path)))
        slices = [Slice(header.path, header.path, None, at, header.path) for at, header in enumerate(members)]
        studies.append(make_study(patients[members[0].path], uid, label, root.name, slices, files))
    if settings.patient_ids == "agree":
        require_persons(root, patients, persons)
    notes = (f"{len(others)} files that are not DICOM were left out: {some(others)}",) if others else ()
    return Listing(root, "dicom", sorted_studies(studies), tuple(refusals), notes)


def read_slice(path: Path, settings: ImageSettings) -> np.ndarray:
    """One CT slice, windowed: uint8 [height, width, 1], as stored. MONOCHROME1 (low values bright) is inverted.

    Raises:
        ImageError: not in Hounsfield units, or the pixels cannot be decoded.
    """
    dataset = _read(path, pixels=True)
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise ImageError("a colour picture, not a CT slice")
    if str(dataset.get("RescaleType") or "HU") != "HU":
        raise ImageError(f"values are in {dataset.RescaleType}, not in Hounsfield units")
    if dataset.get("RescaleSlope") is None or dataset.get("RescaleIntercept") is None:
        raise ImageError("no rescale slope and intercept: Hounsfield units are unknown")
    try:
        stored = dataset.pixel_array
    except Exception as error:  # every decoder plugin has its own kinds
        raise ImageError(f"the pixels cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error
    hu = stored * np.float32(dataset.RescaleSlope) + np.float32(dataset.RescaleIntercept)
    shown = apply_window(hu, *settings.width_level)[:, :, None]
    return 255 - shown if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else shown


def _read(path: Path, pixels: bool) -> pydicom.Dataset:
    try:
        if path.stat().st_size == 0:
            raise ImageError("the file is empty (0 bytes)")
        if pixels:
            return pydicom.dcmread(path)
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER))
    except FileNotFoundError as error:
        raise ImageError("the file does not exist") from error
    except (InvalidDicomError, OSError, ValueError, EOFError) as error:
        raise ImageError("not a readable DICOM file") from error


def _person(header: pydicom.Dataset) -> Person:
    said = (str(header.get(tag) or "").strip() for tag in ("PatientID", "PatientBirthDate", "PatientSex"))
    return Person(*said)


def _checked(header: pydicom.Dataset, name: str) -> _Header:
    """What grouping and ordering need.

    Raises:
        ImageError: not an axial CT slice.
    """
    if header.get("Modality") != "CT":
        raise ImageError(f"modality {header.get('Modality') or 'unknown'}, not CT: save it as PNG, windowed")
    if not header.get("Rows") or not header.get("Columns"):
        raise ImageError("no picture in the file")
    if header.Rows * header.Columns > MAX_PIXELS:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} megapixels ({header.Columns} x {header.Rows})")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise ImageError(f"{header.NumberOfFrames} frames in one file; convert to one file per slice or to NIfTI")
    if not header.get("SeriesInstanceUID"):
        raise ImageError("no SeriesInstanceUID: which series it belongs to is unknown")
    place = _numbers(header.get("ImagePositionPatient"), 3)
    axes = _numbers(header.get("ImageOrientationPatient"), 6)
    if place is None or axes is None:
        raise ImageError("no ImagePositionPatient or ImageOrientationPatient: order and orientation are unknown")
    along_row, along_column = axes[:3], axes[3:]
    # patient axes are left, back, head (DICOM PS3.3 C.7.6.2.1.1)
    for direction, axis in ((along_row, 0), (along_column, 1)):
        if direction[axis] < np.cos(np.radians(AXIAL_WITHIN)) * np.linalg.norm(direction) or not direction.any():
            raise ImageError(
                "not an axial slice stored the usual way (rows to the left, columns to the back): "
                f"ImageOrientationPatient {axes.round(3).tolist()}"
            )
    normal = np.cross(along_row, along_column)
    return _Header(
        path=name,
        series=str(header.SeriesInstanceUID),
        height=float(np.dot(place, normal)),
        instance=int(header.get("InstanceNumber") or 0),
    )


def _numbers(value: object, count: int) -> np.ndarray | None:
    if not isinstance(value, MultiValue) or len(value) != count:
        return None
    numbers = np.array([float(item) for item in value])
    return numbers if np.isfinite(numbers).all() else None


@dataclass(frozen=True)
class _Naming:
    """What names the patient of a file: its folder, or its header.

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
    def of(cls, tree: Tree, persons: Mapping[str, Person], settings: SourceSettings) -> _Naming:
        tops = {PurePosixPath(name).parts[0] for name in (*tree.folders, *(name for name in tree.files if "/" in name))}
        labelled = settings.labelled and any(name.count("/") > 1 for name in persons)
        naming = cls(settings, 2 if labelled else int(len(tops) > 1), persons, {})
        ids: dict[str | None, set[str]] = defaultdict(set)
        for name, person in persons.items():
            ids[naming.folder(name)].add(person.patient_id)
        return replace(naming, ids={folder: min(each) for folder, each in ids.items() if len(each) == 1})

    def label(self, name: str) -> str | None:
        folders = PurePosixPath(name).parts[:-1]
        return folders[0] if self.settings.labelled and len(folders) > 1 else None

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


def _name_patients(root: Path, headers: list[_Header], naming: _Naming) -> tuple[dict[str, str], dict[str, str | None]]:
    """Patient and label of every file.

    With labels, a file at least two folders deep lies in ``<class>/<patient>/``. Otherwise, several folders below the root
    are several patients; files in one folder belong to their PatientID.
    """
    settings = naming.settings
    labels = {header.path: naming.label(header.path) for header in headers}
    named = {header.path: naming.patient(header.path) for header in headers}
    patients = {path: patient for path, patient in named.items() if patient is not None}
    unnamed = [path for path, patient in named.items() if patient is None]
    classes = {label for label in labels.values() if label is not None}
    loose = [path for path, label in labels.items() if label is None and Path(path).parts[0] in classes]
    if loose:
        raise UserError(
            f"{root}: {some(loose)} lie in a class folder without a folder of their patient: put them into "
            "<class>/<patient>/, or pass --source.labelled false if the folders name no classes"
        )
    if unnamed:
        raise UserError(
            f"{root}: no patient for {some(unnamed)}: "
            + (
                f"patient_regex {settings.patient_regex!r} does not match"
                if settings.patient_regex
                else "PatientID is empty; put each patient into a folder or pass --patient-regex"
            )
        )
    return patients, labels
