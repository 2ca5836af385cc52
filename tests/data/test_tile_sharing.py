"""How many tiles the pictures of a sample get: shared among several, and as many as their data set says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymed.data.corpus import Encoding, LoadSamples
from raymed.data.image import ImageSettings
from raymed.data.record import Message
from raymed.data.shards import Content
from raymed.data.tiles import TileSettings

SIZE = 28


def tiles(root: Path, side: int, pictures: int, most: int) -> list[int]:
    """Of each picture of a sample with so many square ones, without thumbnails."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)).save(root / "a.png")
    load = LoadSamples(
        root, {"set": "."}, {"set": most}, Encoding(ImageSettings(SIZE), TileSettings(), "", 10_000), "internvl-tiny"
    )
    turns = (Message("human", "<image>" * pictures + "?"), Message("gpt", "Clear."))
    content = load._content(("a.png",) * pictures, turns, most)
    assert isinstance(content, Content)
    shapes = [image.pixels.shape for image in content.images if image.role == "input"]
    return [height // SIZE * (width // SIZE) for height, width, _ in shapes]


@pytest.mark.parametrize(
    ("side", "most", "expected"),
    [(SIZE, 12, 1), (2 * SIZE, 6, 4), (3 * SIZE, 12, 9), (3 * SIZE, 6, 4), (4 * SIZE, 12, 9)],
)
def test_a_square_picture_gets_the_grid_that_its_data_set_allows(
    side: int, most: int, expected: int, tmp_path: Path
) -> None:
    assert tiles(tmp_path, side, 1, most) == [expected]


def test_several_pictures_share_the_tiles_and_each_has_one_at_least(tmp_path: Path) -> None:
    assert tiles(tmp_path, 3 * SIZE, 2, 12) == [4, 4], "six each: two by two is the largest square of them"
    assert tiles(tmp_path, 3 * SIZE, 3, 12) == [4, 4, 4]
    assert tiles(tmp_path, 3 * SIZE, 5, 4) == [1] * 5
