"""Drawn pictures on disk: marked as synthetic, with their settings in the file, and beside their input."""

from __future__ import annotations

import io
import json
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
    """The picture with a strip below it that says what it is; the picture itself is left as it is."""
    height = max(14, picture.height // 20)
    font = ImageFont.load_default(height - 3)
    strip = Image.new("RGB", (picture.width, height), "black")
    pen = ImageDraw.Draw(strip)
    width = pen.textlength(MARK, font)
    if width > picture.width:
        font = ImageFont.load_default((height - 3) * picture.width / width)
    pen.text((picture.width / 2, height / 2), MARK, "white", font, anchor="mm")
    whole = Image.new("RGB", (picture.width, picture.height + height))
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


def sheet(given: Image.Image, drawn: Image.Image) -> Image.Image:
    """The input, as large as what was drawn from it is shown, and that, marked, side by side."""
    times = -(-SHOWN // max(drawn.size))
    size = drawn.width * times, drawn.height * times
    right = marked(drawn.resize(size, Image.Resampling.NEAREST))
    whole = Image.new("RGB", (2 * right.width + GAP, right.height), "white")
    whole.paste(given.convert("RGB").resize(size, Image.Resampling.BICUBIC), (0, 0))
    whole.paste(right, (right.width + GAP, 0))
    return whole
