"""From a volume, a series or a picture to the slices that a report is written about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as Pillow

from raymed.data.image import MINMAX, ImageError, ImageSettings, fit, read_picture
from raymed.data.record import Image
from raymed.data.sources import SourceSettings, nifti, read_whole
from raymed.data.sources.dicom import is_dicom, sort_named
from raymed.data.sources.dicom_pixels import read_series
from raymed.data.sources.listing import Geometry
from raymed.data.sources.paths import absence, walk
from raymed.errors import UserError


@dataclass(frozen=True)
class SliceSettings:
    """Which slices of a volume are seen.

    Attributes:
        choose: mask takes the slice on which the mask is largest, centre the middle one; auto takes mask where a report has
            a mask that marks something, else centre.
        count: how many neighbouring slices around it are seen, that one included.
    """

    choose: Literal["auto", "mask", "centre"] = "auto"
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"slices.count is {self.count}: it must be at least 1")

    def choice(self, depth: int, areas: Sequence[int] | None) -> range:
        """Positions of the chosen slices, of `depth` in order.

        Args:
            areas: how many voxels the mask marks at each position; None without a mask.

        Raises:
            ImageError: there are fewer slices, or no mask to choose by.
        """
        if depth < self.count:
            raise ImageError(f"{depth} slices, fewer than slices.count {self.count}")
        if self.choose == "mask" and (areas is None or max(areas) == 0):
            raise ImageError(f"slices.choose is mask, and there is {'no mask' if areas is None else 'nothing in the mask'}")
        middle = int(np.argmax(areas)) if areas is not None and self._by_mask(areas) else depth // 2
        first = min(max(middle - self.count // 2, 0), depth - self.count)
        return range(first, first + self.count)

    def told(self, chosen: range, depth: int, areas: Sequence[int] | None) -> str:
        """What `choice` chose, as a person counts: from 1, at the feet."""
        which = "the one on which the mask is largest" if areas is not None and self._by_mask(areas) else "the middle one"
        if len(chosen) == 1:
            return f"slice {chosen[0] + 1} of {depth} from the feet, {which}"
        return f"slices {chosen[0] + 1} to {chosen[-1] + 1} of {depth} from the feet, around {which}"

    def _by_mask(self, areas: Sequence[int]) -> bool:
        return self.choose != "centre" and max(areas) > 0


@dataclass(frozen=True)
class Reading:
    """What decides about the pictures of a report.

    Attributes:
        image: their size, and how values become grey levels.
        slices: which of them.
        orientation: of volumes that do not say theirs, as `SourceSettings` has it.
        hounsfield: whether values must be Hounsfield units.
    """

    image: ImageSettings
    slices: SliceSettings = field(default_factory=SliceSettings)
    orientation: str | None = None
    hounsfield: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reading:
        """As `recorded` gave it."""
        image, slices = ImageSettings.from_dict(values["image"]), SliceSettings(**values["slices"])
        return cls(image, slices, values["orientation"], values["hounsfield"])


@dataclass(frozen=True)
class Pictures:
    """The slices that were chosen, and the masks of them, uint8 [size, size, 1], from the feet to the head.

    Attributes:
        chosen: which slices of the volume these are, in words; empty of a single picture.
    """

    images: tuple[Image, ...]
    geometry: Geometry
    modality: str | None
    chosen: str = ""


def read_pictures(path: Path, mask: Path | None, reading: Reading) -> Pictures:
    """The chosen slices of a NIfTI volume or of a folder with one DICOM series; or a picture, or a DICOM file.

    Raises:
        ImageError: it cannot be used; for whatever reason.
    """
    try:
        if mask is not None and not mask.is_file():
            raise ImageError(f"the mask: {absence(mask)}")
        if path.is_dir():
            return _series(path, list(walk(path).files), mask, reading)
        if not path.is_file():
            raise ImageError(absence(path))
        if is_dicom(path):
            return _series(path.parent, [path.name], mask, reading)
        return _volume(path, mask, reading) if nifti.is_nifti(path) else _single(path, mask, reading)
    except (ImageError, UserError):
        raise
    except Exception as error:  # foreign bytes in foreign decoders: whatever they raise, the file is unusable
        raise ImageError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def _volume(path: Path, mask: Path | None, reading: Reading) -> Pictures:
    slices = nifti.volume_slices(path, path.name, reading.orientation)
    frames = [piece.frame for piece in slices if piece.frame is not None]
    axes = slices[0].axes or ""
    marked = nifti.read_mask(mask, path, axes)[frames] if mask else None
    areas = None if marked is None else marked.sum(axis=(1, 2)).tolist()
    positions = reading.slices.choice(len(frames), areas)
    pictures = nifti.read_slices(path, [frames[at] for at in positions], axes, reading.image)
    masks = None if marked is None else np.take(marked, list(positions), axis=0)
    # nothing in such a file says that it is CT, but that its values had to be Hounsfield units
    modality = None if reading.image.window == MINMAX else "CT"
    chosen = reading.slices.told(positions, len(frames), areas)
    return replace(_pictures(pictures, masks, slices[0].geometry, modality, reading), chosen=chosen)


def _series(folder: Path, names: Sequence[str], mask: Path | None, reading: Reading) -> Pictures:
    if mask is not None:
        raise ImageError("a mask needs the volume as NIfTI: convert the series")
    ordered = sort_named(folder, dict.fromkeys(names, ("", "")), SourceSettings(patient_ids="folder"))
    if not ordered.places:
        raise ImageError(next(iter((ordered.refused | ordered.left_out).values()), "no DICOM files in the folder"))
    studies = {place.study for place in ordered.places.values()}
    if len(studies) > 1:
        raise ImageError(f"a folder of {len(studies)} series, or phases of one: name a folder with the files of one")
    names = sorted(ordered.places, key=lambda name: ordered.places[name].position)
    positions = reading.slices.choice(len(names), None)
    shown = read_series([folder / name for name in names], reading.image)
    first = ordered.places[names[positions[0]]]
    made = _pictures([shown[at] for at in positions], None, first.geometry, first.modality, reading)
    return replace(made, chosen=reading.slices.told(positions, len(names), None))


def _single(path: Path, mask: Path | None, reading: Reading) -> Pictures:
    shown = read_whole(path, reading.image)
    reading.slices.choice(1, None if mask is None else [1])
    masks = None if mask is None else np.expand_dims(read_picture(mask, exif=reading.image.exif).any(axis=2), 0)
    if masks is not None and masks.shape[1:] != shown.shape[:2]:
        raise ImageError(f"the mask's shape is {masks.shape[1:]}, and the picture's {shown.shape[:2]}")
    return _pictures([fit(shown, reading.image)], masks, Geometry(), None, reading)


def _pictures(
    shown: Sequence[np.ndarray | str],
    masks: np.ndarray | None,
    geometry: Geometry,
    modality: str | None,
    reading: Reading,
) -> Pictures:
    """Raises: ImageError: one of the slices cannot be used, or is not in the unit that is asked for."""
    if reading.hounsfield and modality != "CT":
        raise ImageError("no Hounsfield units, which the encoder's plans want: prepare it with --normalize minmax")
    images = []
    for place, picture in enumerate(shown):
        if isinstance(picture, str):
            raise ImageError(picture)
        images.append(Image("input", place, _grey(picture)))
    for place, marked in enumerate(() if masks is None else masks):
        fitted = fit((marked * np.uint8(255))[:, :, None], reading.image)
        images.append(Image("mask", place, np.where(fitted >= 128, np.uint8(255), np.uint8(0))))
    return Pictures(tuple(images), geometry, modality)


def _grey(picture: np.ndarray) -> np.ndarray:
    """uint8 [size, size, 1 or 3] -> [size, size, 1]: the encoder has one channel (ITU-R BT.601 luma)."""
    return picture if picture.shape[2] == 1 else np.asarray(Pillow.fromarray(picture).convert("L"))[:, :, None]
