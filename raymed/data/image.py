"""Any picture file or CT slice -> uint8 [size, size, 1 or 3].

Orientation and laterality are kept as stored: a file whose EXIF data ask for a rotation or mirroring is refused, because
showing it as stored and showing it turned are both guesses, unless a person says which.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps

from raymed.errors import UserError

# How files become pixels, as a number: raise it with every change after which some file gives other pixels, is used where it
# was refused, or is refused where it was used. Prepared data of another number are read again, and models of another number
# are not asked about files.
PIXEL_RULE = 4
MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
WINDOWS = {
    "lung": (1500.0, -600.0),
    "mediastinum": (400.0, 40.0),
    "bone": (1800.0, 400.0),
    "abdomen": (400.0, 50.0),
    "brain": (80.0, 40.0),
}

EXIF_ORIENTATION = 0x0112
PHOTOMETRIC = 262  # a tag of TIFF: 0 where the smallest value is white
FEW_LEVELS = 32  # of grey: fewer are left of a picture whose values mean something else
MINMAX = "minmax"
SIXTEEN_BIT = "bits,N or hu,OFFSET, such as bits,12 or hu,32768, or stretch"
LATER = {"exif": "refuse"}  # settings that came later, at their defaults: what is written down leaves these out

ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library in the process may have switched it on


class ImageError(Exception):
    """A picture that cannot be used; the message is the reason, in words, for the quarantine list."""


@dataclass(frozen=True)
class ImageSettings:
    """How pictures are brought to one size and eight bits.

    Attributes:
        size: side of the prepared square picture, in pixels.
        resize: "squash" stretches to the square; "pad" keeps the shape and adds black borders.
        window: for slices in Hounsfield units: lung, mediastinum, bone, abdomen, brain, or "WIDTH,LEVEL"; "minmax" asks for
            no unit: the least value of each slice becomes black and its greatest white.
        sixteen_bit: what the values of 16-bit grey pictures mean, for all pictures alike: "bits,N" that 0 is black and the
            largest number of N bits white; "hu,OFFSET" that they are Hounsfield units plus OFFSET, which are windowed;
            "stretch" nothing in common, each picture's own minimum becomes black and its maximum white. "refuse" takes none.
        exif: of pictures whose EXIF data ask for a rotation or mirroring: "apply" turns them so, "refuse" takes none.
        rule: the number of the pixel rule that they are used under: this raymed's, or the one that was recorded.
    """

    size: int = 448
    resize: Literal["squash", "pad"] = "squash"
    window: str = "lung"
    sixteen_bit: str = "refuse"
    exif: Literal["refuse", "apply"] = "refuse"
    rule: int = field(default=PIXEL_RULE, init=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"image size {self.size}: must be at least 1")
        if self.size**2 > MAX_PIXELS:
            raise UserError(f"image size {self.size}: must be at most {math.isqrt(MAX_PIXELS)}")
        if self.exif not in ("refuse", "apply"):  # recorded settings and those of tools are not parsed
            raise UserError(f"image.exif {self.exif!r}: give refuse or apply")
        _ = self.width_level, self.sixteen_bit_meaning

    def __repr__(self) -> str:
        return f"ImageSettings({', '.join(f'{name}={value!r}' for name, value in recorded(self).items())})"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSettings:
        """Settings as `recorded` gave them, under the pixel rule that was recorded; 1 where none was."""
        settings = cls(**{name: value for name, value in values.items() if name != "rule"})
        object.__setattr__(settings, "rule", values.get("rule", 1))
        return settings

    @property
    def told(self) -> str:
        """In words, as settings are called."""
        return ", ".join(f"{name} {value}" for name, value in recorded(self).items())

    def require_rule(self) -> None:
        """Make sure that files are read now as they were when these settings were recorded.

        Raises:
            UserError: they were recorded under another pixel rule.
        """
        if self.rule != PIXEL_RULE:
            raise UserError(
                f"pictures were read by pixel rule {self.rule}, and this raymed reads them by rule {PIXEL_RULE}: the same "
                "file may give other pixels. Prepare the data again and train or extract on them; or use the raymed that "
                "the model was made with (a registered model carries its code: mlflow models serve)"
            )

    @property
    def sixteen_bit_meaning(self) -> tuple[str, int]:
        """What 16-bit values mean (refuse, stretch, bits or hu), and its number, where it has one."""
        text = "bits,16" if self.sixteen_bit == "full" else self.sixteen_bit  # as earlier models have it
        if text in ("refuse", "stretch"):
            return text, 0
        match = re.fullmatch(r"(bits|hu)\s*,\s*(-?\d{1,5})", text)
        if not match or (match[1] == "bits" and not 9 <= int(match[2]) <= 16):
            raise UserError(f"sixteen_bit {text!r}: give {SIXTEEN_BIT}, with N from 9 to 16")
        return match[1], int(match[2])

    @property
    def width_level(self) -> tuple[float, float] | None:
        """Window width and level, in Hounsfield units; None of minmax."""
        if self.window == MINMAX:
            return None
        if self.window in WINDOWS:
            return WINDOWS[self.window]
        try:
            width, level = (float(part) for part in self.window.split(","))
        except ValueError:
            width, level = math.nan, math.nan
        if not (math.isfinite(width) and math.isfinite(level) and width > 0):
            raise UserError(
                f"window {self.window!r}: give one of {', '.join((*WINDOWS, MINMAX))}, or WIDTH,LEVEL with a width above 0, "
                "e.g. 1500,-600"
            )
        return width, level


def recorded(settings: Any) -> dict[str, Any]:
    """Settings, or what holds some, as plain values. A setting that came later is left out where it is at its default: what
    was made before keeps its digest and its name."""

    def kept(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in items if name not in LATER or LATER[name] != value}

    return asdict(settings, dict_factory=kept)


def apply_window(hu: np.ndarray, width: float, level: float) -> np.ndarray:
    """Hounsfield units -> uint8 of the same shape: level - width / 2 becomes 0, level + width / 2 becomes 255.

    y = floor(255 * ((x - level) / width + 0.5)), held within 0..255: DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT, cut to
    whole numbers as common converters do.

    Raises:
        ImageError: NaN pixels.
    """
    scaled = (hu.astype(np.float32) - np.float32(level - width / 2)) * np.float32(255 / width)
    if np.isnan(scaled).any():
        raise ImageError("NaN pixels")
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def show(values: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Values of one slice, Hounsfield units but under minmax -> uint8 of the same shape.

    Raises:
        ImageError: NaN, or under minmax nothing but one value.
    """
    if settings.width_level:
        return apply_window(values, *settings.width_level)
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise ImageError(f"every value is {low:g}: there is nothing to see")
    return apply_window(values, high - low, low + (high - low) / 2)


def read_picture(path: Path, behind: int = 0, exif: Literal["refuse", "apply"] = "refuse") -> np.ndarray:
    """A PNG, JPEG, BMP, TIFF or WebP file as stored or, where asked, turned as EXIF says: uint8 or uint16 [h, w, 1 or 3].

    Transparent pictures are laid on black, or on the grey value `behind`; CMYK and palettes become RGB; RGB with three equal
    channels becomes grey.
    16-bit grey stays 16 bit.

    Raises:
        ImageError: missing, empty, truncated, not a picture, above 100 megapixels, several frames, 32-bit or floating
            point pixels, 16 bits in colour, with transparency or with white as the smallest value, or, unless they are
            applied, EXIF data that ask for a rotation.
    """
    try:
        if path.stat().st_size == 0:
            raise ImageError("the file is empty (0 bytes)")
        with path.open("rb") as file:  # of a path, Pillow maps the pixels, and cuts rows of a TIFF that it turns wrongly
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours, below
                picture = Image.open(file, formats=FORMATS)
            _check_header(picture, exif)
            picture.load()
            return _pixels(ImageOps.exif_transpose(picture) if exif == "apply" else picture, behind)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("the file does not exist") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"not a readable picture ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} megapixels") from error
    except Exception as error:  # decoders raise many kinds on damaged bytes; all mean the same here
        raise ImageError(f"damaged or truncated: {error or type(error).__name__}") from error


def fit(picture: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """uint8 or uint16 [h, w, 1 or 3] -> uint8 [size, size, 1 or 3], bicubic; a picture of the right size is not touched.

    Raises:
        ImageError: a 16-bit picture whose values do not mean what the settings say.
    """
    picture = eight_bit(picture, settings)
    height, width, channels = picture.shape
    size = settings.size
    if (height, width) == (size, size):
        return np.ascontiguousarray(picture)
    image = Image.fromarray(picture[:, :, 0] if channels == 1 else picture)
    if settings.resize == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).reshape(size, size, channels)
    scale = size / max(height, width)
    inner_height, inner_width = (max(1, round(side * scale)) for side in (height, width))
    inner = np.asarray(image.resize((inner_width, inner_height), Image.Resampling.BICUBIC))
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    padded = np.zeros((size, size, channels), np.uint8)
    padded[top : top + inner_height, left : left + inner_width] = inner.reshape(inner_height, inner_width, channels)
    return padded


def _check_header(picture: Image.Image, exif: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} megapixels ({width} x {height})")
    deep = any(";16" in str(tile.args) for tile in getattr(picture, "tile", []))
    if deep and not picture.mode.startswith("I"):  # Pillow would keep the high byte alone
        raise ImageError("16 bits in colour or with transparency; save as 8-bit, or as 16-bit grey without transparency")
    if deep and getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        raise ImageError("a 16-bit TIFF whose smallest value is white (MinIsWhite); save it with black as the smallest")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{frames} frames in one file; save one picture per file")
    orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    if orientation in range(2, 9) and exif != "apply":  # 0, as some devices write, asks for nothing
        raise ImageError(
            f"EXIF orientation {orientation} asks for a rotation or mirroring: save the picture upright, or let "
            "--image.exif apply, of the job that is the first to read such pictures, turn all as EXIF says"
        )


def _pixels(picture: Image.Image, behind: int) -> np.ndarray:
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[:, :, None]
    if picture.mode in ("I", "F"):
        raise ImageError("32-bit or floating point pixels; save as 8- or 16-bit, or as NIfTI or DICOM if in HU")
    if picture.mode in ("1", "L") and "transparency" not in picture.info:
        return np.asarray(picture.convert("L"))[:, :, None]
    if picture.has_transparency_data:
        colour = picture.convert("RGBA")
        laid = Image.alpha_composite(Image.new("RGBA", colour.size, (behind, behind, behind, 255)), colour).convert("RGB")
    else:
        laid = picture.convert("RGB")
    rgb = np.asarray(laid)
    if np.array_equal(rgb[:, :, 0], rgb[:, :, 1]) and np.array_equal(rgb[:, :, 0], rgb[:, :, 2]):
        return np.ascontiguousarray(rgb[:, :, :1])
    return rgb


def eight_bit(picture: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """uint8 or uint16 [h, w, channels] -> uint8 of the same shape, as `ImageSettings.sixteen_bit` says.

    Raises:
        ImageError: 16-bit values that the settings say nothing about, or that do not mean what they say.
    """
    if picture.dtype == np.uint8:
        return picture
    meaning, number = settings.sixteen_bit_meaning
    if meaning == "refuse":
        raise ImageError(
            f"a 16-bit picture: say what the values mean, with --image.sixteen_bit {SIXTEEN_BIT}, of the job that is the "
            "first to read such pictures, or save it as 8-bit"
        )
    if meaning == "hu":
        shown = show(picture.astype(np.float32) - number, settings)
    else:
        low, high = (0, 2**number - 1) if meaning == "bits" else (int(picture.min()), int(picture.max()))
        scaled = (picture.astype(np.float32) - low) * (255 / max(high - low, 1))
        shown = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if len(np.unique(shown)) < FEW_LEVELS <= len(np.unique(picture)):
        raise ImageError(
            f"fewer than {FEW_LEVELS} grey levels are left by sixteen_bit {settings.sixteen_bit}: the values mean something "
            "else"
        )
    return shown
