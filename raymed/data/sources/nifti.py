"""CT volumes in NIfTI files: ``<class>/<patient>/volume.nii.gz``, ``<class>/volume.nii.gz``, or volumes without labels.

Each volume is one study of axial slices from the feet to the head, shown as radiologists see them: the patient's right on
the left of the picture, the front at the top. Where the axes point comes from the affine; volumes whose affine is not
set, or tilted by more than 20 degrees, are refused.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from raymed.data.image import MAX_PIXELS, ImageError, ImageSettings, apply_window, fit
from raymed.data.sources.listing import (
    Listing,
    Refusal,
    Slice,
    SourceSettings,
    Study,
    Tree,
    make_study,
    some,
    sorted_studies,
    walk,
)
from raymed.data.sources.patients import silent_patients, with_patients
from raymed.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
AXIAL_WITHIN = 20.0  # degrees
MAX_VOXELS = 2**30
AIR = -200  # Hounsfield units; every scan of a chest has voxels far below
DISPLAYED = axcodes2ornt(("L", "P", "S"))  # columns grow to the left, rows to the back, slices to the head


def is_nifti(path: Path) -> bool:
    """By the extension."""
    return path.name.lower().endswith(SUFFIXES)


def list_studies(path: Path, settings: SourceSettings) -> Listing:
    """One study per volume, from the headers alone. Volumes that cannot be shown rightly are refused.

    Raises:
        UserError: `patient_regex` does not match.
    """
    root = path.parent if path.is_file() else path
    if path.is_file():
        files: dict[str, os.stat_result] = {path.name: path.stat()}
        refusals: list[Refusal] = []
        others: list[str] = []
        tree = Tree(files)
    else:
        tree = walk(root)
        files = {name: stat for name, stat in tree.files.items() if is_nifti(Path(name))}
        others = [name for name in tree.files if name not in files]
        refusals = list(tree.refusals)
    studies: list[Study] = []
    for name in files:
        patient, label = _name_patient(root, name, settings)
        try:
            frames = _displayed_frames(_open(root / name))
        except ImageError as error:
            refusals.append(Refusal(name, name, patient, str(error)))
            continue
        slices = [Slice(f"{name}#{frame}", name, frame, at, f"{name}#{frame}") for at, frame in enumerate(frames)]
        studies.append(make_study(patient, name, label, root.name, slices, files))
    depth = 2 if settings.labelled else 1
    refusals = with_patients(refusals, tree, depth, settings)
    owners = [study.patient for study in studies] + [refusal.patient for refusal in refusals]
    listed = [*files, *(refusal.id for refusal in refusals)]
    refusals += silent_patients(tree, listed, owners, depth, settings, "a NIfTI volume")
    notes = (f"{len(others)} files that are not NIfTI were left out: {some(others)}",) if others else ()
    return Listing(root, "nifti", sorted_studies(studies), tuple(refusals), notes)


def read_slices(path: Path, frames: list[int], settings: ImageSettings) -> list[np.ndarray | str]:
    """The stored slices `frames` of a volume, windowed and fitted: uint8 [size, size, 1], or why one cannot be used.

    Raises:
        ImageError: the volume cannot be used as a whole.
    """
    volume = _open(path)
    turn = _turn(volume)
    proxy = volume.dataobj
    assert isinstance(proxy, ArrayProxy)
    try:
        stored = proxy.get_unscaled().reshape(volume.shape[:3])
    except Exception as error:  # damaged gzip, short files and more
        raise ImageError(f"damaged or truncated: {' '.join(str(error).split()) or type(error).__name__}") from error
    slope, intercept = np.float32(proxy.slope), np.float32(proxy.inter)
    axis = _slice_axis(turn)
    if float(np.fmin.reduce(stored, axis=None)) * slope + intercept > AIR:
        raise ImageError(f"no voxel below {AIR}: the values are not in Hounsfield units")
    results: list[np.ndarray | str] = []
    for frame in frames:
        plane = np.take(stored, frame, axis=axis)
        hu = _show(plane, turn, axis).astype(np.float32) * slope + intercept
        try:
            results.append(fit(apply_window(hu, *settings.width_level)[:, :, None], settings))
        except ImageError as error:
            results.append(str(error))
    return results


def _open(path: Path) -> nibabel.Nifti1Image:
    """The volume, its header read and checked, its voxels not yet read.

    Raises:
        ImageError: no readable header, or not one three-dimensional volume of numbers with a valid affine.
    """
    try:
        volume = nibabel.Nifti1Image.from_filename(path)
        shape, kind = volume.shape, volume.get_data_dtype()
        affine_set = bool(volume.header["sform_code"] > 0 or volume.header["qform_code"] > 0)
        affine = np.asarray(volume.affine, np.float64)
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
    if not affine_set or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise ImageError("no valid sform or qform: where left, front and head are is unknown")
    return volume


def _turn(volume: nibabel.Nifti1Image) -> np.ndarray:
    """For each stored axis: which displayed axis it is (0 columns, 1 rows, 2 slices), and 1 or -1 for its direction.

    Raises:
        ImageError: tilted, or pixels that are far from square.
    """
    affine = np.asarray(volume.affine, np.float64)
    orientation = io_orientation(affine)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.isnan(orientation).any() or np.abs(axes).max(axis=0).min() < np.cos(np.radians(AXIAL_WITHIN)):
        raise ImageError(f"its axes are tilted by more than {AXIAL_WITHIN:.0f} degrees against the patient's")
    turn = ornt_transform(orientation, DISPLAYED)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    columns, rows = (spacing[list(turn[:, 0]).index(axis)] for axis in (0, 1))
    if max(columns, rows) > 1.1 * min(columns, rows):
        raise ImageError(f"axial pixels are not square ({columns:.2f} x {rows:.2f} mm); resample the volume first")
    return turn


def _slice_axis(turn: np.ndarray) -> int:
    return list(turn[:, 0]).index(2)


def _displayed_frames(volume: nibabel.Nifti1Image) -> list[int]:
    """Stored slice numbers from the feet to the head."""
    turn = _turn(volume)
    axis = _slice_axis(turn)
    frames = list(range(volume.shape[axis]))
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
