"""Dynamic resolution as InternVL's: a picture becomes a grid of square tiles near its own shape, and a thumbnail.

The grid is the one whose shape is nearest; of two that are equally near, the larger one only for a picture that has the
pixels for it. The whole picture is stretched to the grid: nothing is cropped, and nothing padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from raymed.errors import UserError

TOKEN_SIDE = 28  # pixels of an image token: a patch of 14, and 2 x 2 patches make one


@dataclass(frozen=True)
class TileSettings:
    """How many tiles a picture is cut into.

    Attributes:
        least: fewest tiles of a picture.
        most: most tiles of a picture, where its data set does not say otherwise (max_dynamic_patch); several pictures of
            one sample share them.
        thumbnail: whether a picture of several tiles also comes as one tile, behind the others.
    """

    least: int = 1
    most: int = 6
    thumbnail: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UserError(f"tiles.least {self.least} and tiles.most {self.most}: give 1 <= least <= most")


@lru_cache
def grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of `least` to `most` tiles, the smaller ones first."""
    found = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if least <= c * r <= most]
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


def grid(width: int, height: int, least: int, most: int, size: int) -> tuple[int, int]:
    """(columns, rows) of the grid of tiles of size x size for a picture of width x height."""
    shape, area = width / height, width * height
    best, nearest = (1, 1), float("inf")
    for columns, rows in grids(least, most):
        away = abs(shape - columns / rows)
        if away < nearest or (away == nearest and area > 0.5 * size * size * columns * rows):
            best, nearest = (columns, rows), away
    return best


def tile_count(columns: int, rows: int, thumbnail: bool) -> int:
    """Tiles that a picture takes on this grid, its thumbnail included."""
    return columns * rows + (thumbnail and columns * rows > 1)


def stretch(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [h, w, 1 or 3] -> [height, width, 1 or 3], bicubic; a picture of that size is not touched."""
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, -1)


def cut(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [rows * size, columns * size, 1 or 3] -> tiles uint8 [rows * columns, size, size, 3], row by row."""
    height, width, channels = pixels.shape
    tiles = pixels.reshape(height // size, size, width // size, size, channels).transpose(0, 2, 1, 3, 4)
    tiles = tiles.reshape(-1, size, size, channels)
    return np.ascontiguousarray(tiles) if channels == 3 else np.repeat(tiles, 3, axis=3)
