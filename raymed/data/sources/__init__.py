"""Where images come from: one module per input format, found by content.

`list_source` lists studies without decoding anything; `load_study` decodes one study and runs in Ray tasks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from raymed.data.hounsfield import Values, require_hounsfield, without_padding
from raymed.data.image import ImageError, ImageSettings, eight_bit, fit, read_picture
from raymed.data.sources import class_folders, conversations, dicom, folders, nifti, table
from raymed.data.sources.dicom_pixels import read_series, read_slice
from raymed.data.sources.listing import Columns, Listing, Refusal, Slice, SourceSettings, Study, some
from raymed.data.sources.paths import walk
from raymed.data.sources.patients import silent_patients, with_patients
from raymed.errors import UserError
from raymed.job.submitted import where_it_looks

__all__ = [
    "Columns",
    "Listing",
    "NoImagesError",
    "Refusal",
    "Slice",
    "SourceSettings",
    "Study",
    "is_single",
    "list_source",
    "load_study",
    "read_whole",
]


class NoImagesError(UserError):
    """A path that is there and leads to no image."""


_FORMATS = {
    "folders": folders.list_studies,
    "classes": class_folders.list_studies,
    "csv": table.list_studies,
    "conversations": conversations.list_studies,
    "dicom": dicom.list_studies,
    "nifti": nifti.list_studies,
}


def list_source(path: Path, settings: SourceSettings, usable: bool = True) -> Listing:
    """The studies of a folder or file, found by content unless `settings.format` says what it is. Decodes nothing.

    Args:
        usable: whether there must be a study; else whom a folder names is refused, or who is called as the source is.

    Raises:
        UserError: nothing there, nothing usable, several formats at once, or the format's own errors.
    """
    path = Path(path).expanduser().absolute()
    if not path.exists():
        raise UserError(f"no such file or folder: {path}{where_it_looks()}")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder, but a device, pipe or socket: save what it gives as a file")
    try:
        kind = recognise(path) if settings.format == "auto" else settings.format
    except NoImagesError:
        if usable or path.is_file():
            raise
        return _without_images(path, settings)
    if settings.patients:
        if kind not in ("folders", "classes"):
            raise UserError(f"--source.patients says whose the images of class folders are, and {path} is read as {kind}")
        kind = "classes"
    listing = _FORMATS[kind](path, settings)
    if not listing.studies and not usable and not listing.refusals and path.is_dir():
        return _without_images(path, settings)
    if not listing.studies and not usable and listing.refusals:
        own = path.stem if path.is_file() else path.name
        return replace(listing, refusals=tuple(replace(each, patient=each.patient or own) for each in listing.refusals))
    if not listing.studies:
        reasons = "".join(f"\n  {refusal.where}: {refusal.reason}" for refusal in listing.refusals[:10])
        raise UserError(f"{path}: nothing usable as {kind}: {len(listing.refusals)} files refused{reasons}")
    return listing


def _without_images(path: Path, settings: SourceSettings) -> Listing:
    """A folder in which there are no images: of the patients whose folders lie in it, or of one who is called as it is."""
    tree, depth = walk(path), 2 if settings.labelled else 1
    refusals = with_patients(tree.refusals, tree, depth, settings)
    listed, named = [refusal.id for refusal in refusals], [refusal.patient for refusal in refusals]
    refusals += silent_patients(tree, listed, named, depth, settings, "an image")
    if not refusals:
        reason = f"none of the files in the folder ({len(tree.files)}) is an image" if tree.files else "an empty folder"
        refusals.append(Refusal(path.name, path.name, path.name, reason))
    return Listing(path, "folders", (), tuple(refusals))


def load_study(root: Path, study: Study, settings: ImageSettings) -> list[tuple[Slice, np.ndarray | Refusal]]:
    """All slices of a study, decoded, windowed and fitted: uint8 [size, size, 1 or 3], or why that slice cannot be used.

    Never raises for a bad file.

    Raises:
        UserError: the settings were recorded under another pixel rule.
    """
    settings.require_rule()
    series = [path for path in dict.fromkeys(piece.path for piece in study.slices) if dicom.is_dicom(root / path)]
    dicom_results = dict(zip(series, read_series([root / path for path in series], settings), strict=True))
    loaded: list[tuple[Slice, np.ndarray | Refusal]] = []
    scanned: dict[str, Values] = {}  # of pictures that are said to be in Hounsfield units
    for path, group in groupby(study.slices, key=lambda piece: piece.path):
        slices = list(group)
        known = path in dicom_results
        results = [dicom_results[path]] * len(slices) if known else _load_file(root, slices, settings, scanned)
        for piece, result in zip(slices, results, strict=True):
            if isinstance(result, str):
                loaded.append((piece, Refusal(piece.id, piece.where, study.patient, _unnamed(result, root, path))))
            else:
                loaded.append((piece, result))
    try:
        require_hounsfield(scanned.values())
    except ImageError as error:
        lost = [(piece, Refusal(piece.id, piece.where, study.patient, str(error))) for piece, _ in loaded]
        return [each if each[0].path in scanned else kept for each, kept in zip(lost, loaded, strict=True)]
    return loaded


def read_whole(path: Path, settings: ImageSettings, behind: int = 0) -> np.ndarray:
    """A picture or DICOM file of its own size, windowed: uint8 [height, width, 1 or 3].

    Args:
        behind: the grey value that shows through where a picture is transparent.

    Raises:
        ImageError: it cannot be used; for whatever reason.
        UserError: the settings were recorded under another pixel rule.
    """
    settings.require_rule()
    try:
        if nifti.is_nifti(path):
            raise ImageError("a volume, not a picture")
        stored = read_slice(path, settings) if dicom.is_dicom(path) else read_picture(path, behind, settings.exif)
        return eight_bit(stored, settings)
    except ImageError:
        raise
    except Exception as error:  # foreign bytes in foreign decoders: whatever they raise, the file is unusable
        raise ImageError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def is_single(path: Path) -> bool:
    """Whether a path is a file with one slice: a picture, or a DICOM file."""
    return path.is_file() and (folders.is_picture(path) or dicom.is_dicom(path))


def recognise(path: Path) -> str:
    """The format of a file or folder, by its content.

    Raises:
        UserError: no images, or more than one format.
    """
    if path.is_file():
        found = {name for name, is_one in _FILE_KINDS.items() if is_one(path)}
        if not found:
            raise NoImagesError(f"{path}: not a picture, CSV, JSON, JSONL, DICOM or NIfTI file")
        return found.pop()
    lists = [item for item in sorted(path.iterdir()) if item.is_file() and not item.name.startswith(".")]
    tables = [item for item in lists if table.names_images(item)]
    talks = [item for item in lists if conversations.names_images(item)]
    if len(tables) + len(talks) > 1 and (tables or not conversations.are_splits(talks)):
        names = some([item.name for item in tables + talks])
        raise UserError(f"{path} holds several lists of images ({names}): name the one to use")
    if tables or talks:
        return "csv" if tables else "conversations"
    examples: dict[str, str] = {}
    for name in walk(path).files:
        for kind in ("folders", "dicom", "nifti"):
            if kind not in examples and _FILE_KINDS[kind](path / name):
                examples[kind] = name
    if not examples:
        raise NoImagesError(f"{path}: no images found (looked for pictures, CSV, JSON, JSONL, DICOM and NIfTI files)")
    if len(examples) > 1:
        listed = ", ".join(f"{kind} (e.g. {name})" for kind, name in examples.items())
        raise UserError(f"{path} holds several formats: {listed}. Choose one with --source.format")
    return next(iter(examples))


_FILE_KINDS = {
    "folders": folders.is_picture,
    "csv": table.is_table,
    "conversations": conversations.is_conversations,
    "dicom": dicom.is_dicom,
    "nifti": nifti.is_nifti,
}


def _unnamed(reason: str, root: Path, path: str) -> str:
    """The reason without the file's name, which decoders like to repeat: `Refusal.where` has it, or its pseudonym."""
    for name in (str(root / path), path, Path(path).name):
        reason = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "the file", reason)
    return reason


def _load_file(
    root: Path, slices: list[Slice], settings: ImageSettings, scanned: dict[str, Values]
) -> list[np.ndarray | str]:
    """One fitted picture, or a reason in words, for each of the slices of one file.

    Args:
        scanned: what a picture in Hounsfield units is judged by goes there, by its path.
    """
    path = root / slices[0].path
    try:
        if nifti.is_nifti(path):
            frames = [piece.frame for piece in slices if piece.frame is not None]
            if len(frames) < len(slices):
                raise ImageError("a volume, not a picture: give the NIfTI files themselves as the source")
            return nifti.read_slices(path, frames, slices[0].axes, settings)
        picture = read_picture(path, exif=settings.exif)
        fitted = fit(picture, settings)
        meaning, offset = settings.sixteen_bit_meaning
        if meaning == "hu" and picture.dtype == np.uint16:
            scanned[slices[0].path] = without_padding(picture.astype(np.float32) - offset)[1]
        return [fitted] * len(slices)
    except ImageError as error:
        return [str(error)] * len(slices)
    except Exception as error:  # foreign bytes in foreign decoders: whatever they raise, the file is unusable
        return [f"cannot be decoded: {type(error).__name__}: {error}"] * len(slices)
