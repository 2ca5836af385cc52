"""Drawn pictures on disk: marked as synthetic, with their settings in the file, and beside their input."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from raymed.errors import UserError

MARK = "SYNTHETIC"
SETTINGS = "raymed"  # key of the settings in a PNG's text
GAP = 8  # pixels between the pictures of a sheet
SHOWN = 256  # pixels that the longer side of a sheet's pictures has at least: small ones are shown several times as large


def marked(picture: Image.Image) -> Image.Image:
    """The picture with a strip below it that says what it is. The picture itself is left as it is; where it is narrower than
    the words, the strip stands out to its right."""
    height = max(14, picture.height // 12)
    font = ImageFont.load_default(height - 3)
    width = max(picture.width, math.ceil(font.getlength(MARK)) + 2)
    strip = Image.new("RGB", (width, height), "black")
    ImageDraw.Draw(strip).text((width / 2, height / 2), MARK, "white", font, anchor="mm")
    whole = Image.new("RGB", (width, picture.height + height), "white")
    whole.paste(picture, (0, 0))
    whole.paste(strip, (0, picture.height))
    return whole


def png_bytes(picture: Image.Image, settings: Mapping[str, Any]) -> bytes:
    """A picture that is marked as PNG, with its settings as JSON in the file's text under `SETTINGS`."""
    text, file = PngInfo(), io.BytesIO()
    text.add_itxt(SETTINGS, json.dumps({"synthetic": True, **settings}, ensure_ascii=False))
    picture.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def write_png(picture: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write what `png_bytes` makes of a picture.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(picture, settings))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}. Free space, or choose another --out") from error


def sheet(*pictures: Image.Image) -> Image.Image:
    """Pictures and, last, what was drawn from them, marked, side by side: all as large as the drawing is shown."""
    drawn = pictures[-1]
    times = -(-SHOWN // max(drawn.size))
    size = drawn.width * times, drawn.height * times
    *columns, last = (_resized(picture, size) for picture in pictures)
    right, step = marked(last), size[0] + GAP
    whole = Image.new("RGB", (len(columns) * step + right.width, right.height), "white")
    for place, column in enumerate([*columns, right]):
        whole.paste(column, (place * step, 0))
    return whole


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at another size: pixels stay pixels where it becomes larger."""
    larger = picture.width <= size[0] and picture.height <= size[1]
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BICUBIC)
