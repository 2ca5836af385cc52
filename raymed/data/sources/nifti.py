"""CT volumes in NIfTI files: ``<class>/<patient>/volume.nii.gz``, ``<class>/volume.nii.gz``, or volumes without labels.

Each volume is one study of axial slices from the feet to the head, shown as radiologists see them: the patient's right on
the left of the picture, the front at the top. Where the axes point comes from the affine; volumes whose affine is not
set, or says two things, are refused unless `orientation` settles it; so are those that are tilted by more than 20 degrees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import axcodes2ornt, ornt_transform

from raymed.data.hounsfield import Values, require_hounsfield, without_padding
from raymed.data.image import MAX_PIXELS, MINMAX, ImageError, ImageSettings, fit, show
from raymed.data.sources.dicom_header import AXIAL_WITHIN, SQUARE_WITHIN
from raymed.data.sources.listing import (
    Geometry,
    Listing,
    Note,
    Refusal,
    Slice,
    SourceSettings,
    Study,
    make_study,
    sorted_studies,
)
from raymed.data.sources.paths import Tree, walk
from raymed.data.sources.patients import silent_patients, with_patients
from raymed.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
DATA_SET_FOLDERS = ("imagesTr", "imagesTs", "imagesVal", "labelsTr", "labelsTs", "images", "train", "val", "test")
MANY_VOLUMES = 12  # more are not of one patient
MAX_VOXELS = 2**30
DISPLAYED = axcodes2ornt(("L", "P", "S"))  # columns grow to the left, rows to the back, slices to the head


def is_nifti(path: Path) -> bool:
    """By the extension."""
    return path.name.lower().endswith(SUFFIXES)


def list_studies(path: Path, settings: SourceSettings) -> Listing:
    """One study per volume, from the headers alone. Volumes that cannot be shown rightly are refused.

    Raises:
        UserError: `patient_regex` does not match, or the volumes of many patients lie in one folder.
    """
    root = path.parent if path.is_file() else path
    tree = Tree({path.name: path.stat()}) if path.is_file() else walk(root)
    files = {name: stat for name, stat in tree.files.items() if is_nifti(Path(name))}
    others = [name for name in tree.files if name not in files]
    owners = {name: _name_patient(root, name, settings) for name in files}
    if settings.patient_regex is None:
        _require_patients(root, owners)
    refusals = list(tree.refusals)
    studies: list[Study] = []
    for name, (patient, label) in owners.items():
        try:
            slices = volume_slices(root / name, name, settings.orientation)
        except ImageError as error:
            refusals.append(Refusal(name, name, patient, str(error)))
            continue
        studies.append(make_study(patient, name, label, root.name, slices, files))
    depth = 2 if settings.labelled else 1
    refusals = with_patients(refusals, tree, depth, settings)
    named = [study.patient for study in studies] + [refusal.patient for refusal in refusals]
    listed = [*files, *(refusal.id for refusal in refusals)]
    refusals += silent_patients(tree, listed, named, depth, settings, "a NIfTI volume")
    notes = (Note.of(f"{len(others)} files that are not NIfTI were left out", others),) if others else ()
    return Listing(root, "nifti", sorted_studies(studies), tuple(refusals), notes)


def volume_slices(path: Path, name: str, orientation: str | None) -> list[Slice]:
    """The axial slices of a volume from the feet to the head, from its header alone.

    Args:
        name: its path relative to the source.
        orientation: as `SourceSettings` has it.

    Raises:
        ImageError: it cannot be read, or not be shown rightly.
    """
    volume = _open(path)
    axes = _axes(volume, orientation)
    geometry = _geometry(volume, axes)
    return [
        Slice(f"{name}#{frame}", name, frame, at, f"{name}#{frame}", geometry=geometry, modality="CT", axes=axes)
        for at, frame in enumerate(_displayed_frames(volume.shape, axes))
    ]


def read_mask(path: Path, image: Path, axes: str) -> np.ndarray:
    """Where a volume's mask is above 0, by stored slice number and shown as the volume is: bool [slices, rows, columns].

    Args:
        axes: to where the volume's stored axes point.

    Raises:
        ImageError: the mask lies otherwise than the volume, or cannot be read.
    """
    mask, volume = _open(path), _open(image)
    if mask.shape[:3] != volume.shape[:3]:
        raise ImageError(f"the mask's shape is {mask.shape[:3]}, and the picture's {volume.shape[:3]}")
    if (own := _axes(mask, axes)) != axes:
        raise ImageError(f"the mask's axes point to {own}, and the picture's to {axes}")
    stored, slope, intercept = _voxels(mask)
    values = stored * slope + intercept
    if not np.isfinite(values).all():
        raise ImageError("the mask holds NaN or infinite values")
    turn = _turn(axes)
    axis = _slice_axis(turn)
    return np.stack([_show(plane, turn, axis) for plane in np.moveaxis(values > 0, axis, 0)])


def read_slices(path: Path, frames: list[int], axes: str | None, settings: ImageSettings) -> list[np.ndarray | str]:
    """The stored slices `frames` of a volume, windowed and fitted: uint8 [size, size, 1], or why one cannot be used.

    Args:
        axes: to where its stored axes point, such as LPS; None asks the file.

    Raises:
        ImageError: the volume cannot be used as a whole.
    """
    volume = _open(path)
    turn = _turn(axes or _axes(volume, None))
    stored, slope, intercept = _voxels(volume)
    axis = _slice_axis(turn)
    wanted = set(frames)
    scanned: list[Values] = []
    shown: dict[int, np.ndarray | str] = {}
    for frame in range(stored.shape[axis]):
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                plane = np.take(stored, frame, axis=axis).astype(np.float32) * slope + intercept
            hu, values = without_padding(plane)
            scanned.append(values)
            if frame in wanted:
                shown[frame] = fit(show(_show(hu, turn, axis), settings)[:, :, None], settings)
        except ImageError as error:
            shown[frame] = str(error)
    if settings.window != MINMAX:
        require_hounsfield(scanned)
    return [shown[frame] for frame in frames]


def _open(path: Path) -> nibabel.Nifti1Image:
    """The volume, its header read and checked, its voxels not yet read.

    Raises:
        ImageError: no readable header, or not one three-dimensional volume of numbers.
    """
    try:
        volume = nibabel.Nifti1Image.from_filename(path)
        shape, kind = volume.shape, volume.get_data_dtype()
    except FileNotFoundError as error:
        raise ImageError("the file does not exist") from error
    except Exception as error:  # damaged headers raise many kinds
        raise ImageError("not a readable NIfTI file") from error
    if len(shape) < 3 or any(side > 1 for side in shape[3:]) or min(shape) < 1:
        raise ImageError(f"its shape is {shape}; only single volumes are read")
    if kind.kind not in "iuf":
        raise ImageError(f"voxels of type {kind}, not numbers")
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS or max(shape) ** 2 > MAX_PIXELS:
        raise ImageError(f"its shape {shape} is too large")
    return volume


def _voxels(volume: nibabel.Nifti1Image) -> tuple[np.ndarray, np.float32, np.float32]:
    """The voxels as stored, [three axes], and the slope and intercept that lead to their values.

    Raises:
        ImageError: the file is damaged.
    """
    proxy = volume.dataobj
    assert isinstance(proxy, ArrayProxy)
    try:
        stored = proxy.get_unscaled().reshape(volume.shape[:3])
    except Exception as error:  # damaged gzip, short files and more
        raise ImageError(f"damaged or truncated: {' '.join(str(error).split()) or type(error).__name__}") from error
    return stored, np.float32(proxy.slope), np.float32(proxy.inter)


def _axes(volume: nibabel.Nifti1Image, orientation: str | None) -> str:
    """To where the stored axes point, e.g. LPS: left or right, posterior or anterior, superior or inferior.

    Raises:
        ImageError: unknown, told in two ways, tilted, or pixels that are far from square.
    """
    try:
        told = {"sform": volume.get_sform(coded=True), "qform": volume.get_qform(coded=True)}
    except Exception as error:  # quaternions that are none, and more
        raise ImageError("not a readable NIfTI file: a damaged affine") from error
    affines = {name: np.asarray(affine, np.float64) for name, (affine, code) in told.items() if code > 0}
    if orientation in told:
        affines = {name: affine for name, affine in affines.items() if name == orientation}
    affines = {name: affine for name, affine in affines.items() if _is_set(affine)}
    given = orientation if orientation not in told else None
    if not affines and given:
        _require_square(volume.header.get_zooms()[:3], given)
        return given
    if not affines:
        raise ImageError(
            "no valid sform or qform (missing, or the identity that programs write by default): where left, front and head "
            "are is unknown; if you know, pass --source.orientation with to where the stored axes point, such as LPS"
        )
    codes = {name: "".join(code or "?" for code in nibabel.aff2axcodes(affine)) for name, affine in affines.items()}
    if len(set(codes.values())) > 1:
        if given:
            return given
        raise ImageError(
            f"sform says {codes['sform']} and qform {codes['qform']}: where left, front and head are is unknown; pass "
            "--source.orientation sform or qform"
        )
    affine = next(iter(affines.values()))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(affine[:3, :3] / spacing).max(axis=0).min() < np.cos(np.radians(AXIAL_WITHIN)):
        raise ImageError(f"its axes are tilted by more than {AXIAL_WITHIN:.0f} degrees against the patient's")
    axes = next(iter(codes.values()))
    _require_square(spacing, axes)
    return axes


def _is_set(affine: np.ndarray) -> bool:
    valid = bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine[:3, :3])) >= 1e-6
    return valid and not np.array_equal(affine, np.eye(4))


def _turn(axes: str) -> np.ndarray:
    """For each stored axis: which displayed axis it is (0 columns, 1 rows, 2 slices), and 1 or -1 for its direction."""
    return ornt_transform(axcodes2ornt(tuple(axes)), DISPLAYED)


def _slice_axis(turn: np.ndarray) -> int:
    return list(turn[:, 0]).index(2)


def _require_square(spacing: Sequence[float], axes: str) -> None:
    """Raises: ImageError: axial pixels that are far from square."""
    columns, rows = (spacing[list(_turn(axes)[:, 0]).index(axis)] for axis in (0, 1))
    if max(columns, rows) > SQUARE_WITHIN * min(columns, rows):
        raise ImageError(f"axial pixels are not square ({columns:.2f} x {rows:.2f} mm); resample the volume first")


def _geometry(volume: nibabel.Nifti1Image, axes: str) -> Geometry:
    """As the header says; nothing where it holds the sizes of a file to which nobody gave any."""
    spacing = [float(size) for size in volume.header.get_zooms()[:3]]
    if spacing == [1.0, 1.0, 1.0]:
        return Geometry()
    displayed = list(_turn(axes)[:, 0])
    column, axis = displayed.index(0), displayed.index(2)
    return Geometry(spacing[column], spacing[axis], spacing[column] * volume.shape[column])


def _displayed_frames(shape: Sequence[int], axes: str) -> list[int]:
    """Stored slice numbers from the feet to the head."""
    turn = _turn(axes)
    axis = _slice_axis(turn)
    frames = list(range(shape[axis]))
    return frames if turn[axis, 1] > 0 else frames[::-1]


def _show(plane: np.ndarray, turn: np.ndarray, axis: int) -> np.ndarray:
    """A stored plane -> [rows to the back, columns to the left]."""
    kept = [turn[other] for other in range(3) if other != axis]
    for at, (_, direction) in enumerate(kept):
        if direction < 0:
            plane = np.flip(plane, axis=at)
    return plane.T if kept[0][0] == 0 else plane


def _name_patient(root: Path, name: str, settings: SourceSettings) -> tuple[str, str | None]:
    """Patient and label: the folder of a volume, or the file name where there is none."""
    folders = list(PurePosixPath(name).parts[:-1])
    label = folders.pop(0) if settings.labelled and folders else None
    if settings.patient_regex:
        patient = settings.patient_of(name)
        if patient is None:
            raise UserError(f"{root}: patient_regex {settings.patient_regex!r} does not match {name}")
        return patient, label
    stem = PurePosixPath(name).name
    return (folders[0] if folders else stem[: stem.lower().rindex(".nii")]), label


def _require_patients(root: Path, owners: Mapping[str, tuple[str, str | None]]) -> None:
    """Raises: UserError: a folder is named as patients' folders are, and holds a data set."""
    volumes = Counter(patient for name, (patient, _) in owners.items() if patient in PurePosixPath(name).parts[:-1])
    for patient, count in volumes.items():
        if count > MANY_VOLUMES or (patient in DATA_SET_FOLDERS and count > 1):
            raise UserError(
                f"{root}: {count} volumes lie in the folder {patient!r}, as if they were of one patient. If each volume "
                "is a patient, pass --source.patient-regex '([^/]+)[.]nii'; if all are of one, '([^/]+)/[^/]+$'"
            )
