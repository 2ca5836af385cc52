"""How large a picture is to a network: sides in whole tokens, within limits of side and area.

Both networks that look at a picture have settings of their own: the ViT that reads it, and the autoencoder that draws it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from raymed.errors import UserError

MAX_PIXELS = 14 * 14 * 9 * 1024


@dataclass(frozen=True)
class ResizeSettings:
    """Sides and area of a prepared picture, in pixels.

    Attributes:
        image_stride: side of a token.
        max_image_size: longest side.
        min_image_size: shortest side, for which small pictures are enlarged; of a long thin picture it may be shorter.
        max_pixels: largest area, shared by the pictures of a sample.
        rule: of a picture whose area is too large, how much its sides shrink: by the root of what the area must (sqrt), or,
            as BAGEL's published code does, by all of it (legacy), which leaves less than there is room for.
    """

    image_stride: int
    max_image_size: int
    min_image_size: int
    max_pixels: int = MAX_PIXELS
    rule: Literal["sqrt", "legacy"] = "sqrt"

    def __post_init__(self) -> None:
        if self.image_stride < 1 or self.max_pixels < 1:
            raise UserError(f"image_stride {self.image_stride} and max_pixels {self.max_pixels} must be at least 1")
        if not self.image_stride <= self.min_image_size <= self.max_image_size:
            raise UserError(
                f"image_stride {self.image_stride}, min_image_size {self.min_image_size}, max_image_size "
                f"{self.max_image_size}: each must be at least as large as the one before"
            )

    @property
    def most_tokens_a_side(self) -> int:
        """Tokens along the longest side that a picture can get: a side of `max_image_size`, rounded."""
        return max(1, round(self.max_image_size / self.image_stride))


VIT = ResizeSettings(image_stride=14, max_image_size=980, min_image_size=378, max_pixels=2_007_040)
VAE = ResizeSettings(image_stride=16, max_image_size=1024, min_image_size=32)
"""How released models see pictures when they are asked."""


def target_size(width: int, height: int, settings: ResizeSettings, images: int = 1) -> tuple[int, int]:
    """(width, height) of a prepared picture, both multiples of the stride.

    Args:
        images: pictures that share `max_pixels`.
    """
    stride = settings.image_stride

    def scaled(sides: tuple[int, int], factor: float) -> tuple[int, int]:
        # To whole pixels, then to whole tokens: rounding once gives another size for one picture in thirty.
        across, down = (max(stride, round(round(side * factor) / stride) * stride) for side in sides)
        return across, down

    factor = min(settings.max_image_size / max(width, height), 1.0)
    factor = max(factor, settings.min_image_size / min(width, height))
    sides = scaled((width, height), factor)
    area = settings.max_pixels / images / (sides[0] * sides[1])
    if area < 1:
        sides = scaled(sides, area if settings.rule == "legacy" else math.sqrt(area))
    if max(sides) > settings.max_image_size:
        sides = scaled(sides, settings.max_image_size / max(sides))
    return sides


def resized(image: Image.Image, settings: ResizeSettings, images: int = 1) -> np.ndarray:
    """A picture as a network takes it, on white where it is transparent: uint8 [height, width, 3], bicubic."""
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, (255, 255, 255, 255)), colour)
    rgb = image.convert("RGB")
    size = target_size(*rgb.size, settings, images)
    return np.asarray(rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC))
