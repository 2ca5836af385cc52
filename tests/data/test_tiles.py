"""Tiles: the published grid for every shape, and pictures that come back whole."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymed.data.tiles import TileSettings, cut, grid, grids, stretch, tile_count
from raymed.errors import UserError

VECTORS = list(csv.DictReader((Path(__file__).parents[1] / "fixtures" / "tiles.csv").open()))


def test_pictures_are_cut_into_as_many_tiles_as_the_published_preprocessing_cuts_them() -> None:
    assert len(VECTORS) > 100
    for row in VECTORS:
        width, height, most, thumbnail, tiles = (int(row[key]) for key in row)
        columns, rows = grid(width, height, 1, most, 448)
        assert tile_count(columns, rows, bool(thumbnail)) == tiles, row


@pytest.mark.parametrize(
    ("size", "at_most_6", "at_most_12"),
    [
        ((512, 512), (1, 1), (1, 1)),
        ((633, 633), (1, 1), (1, 1)),
        ((634, 634), (2, 2), (2, 2)),
        ((950, 950), (2, 2), (2, 2)),
        ((951, 951), (2, 2), (3, 3)),
        ((800, 600), (3, 2), (4, 3)),
        ((2000, 500), (4, 1), (4, 1)),
        ((300, 900), (1, 3), (1, 3)),
        ((1920, 1080), (2, 1), (4, 2)),
    ],
)
def test_grids_change_at_the_published_thresholds(size, at_most_6, at_most_12) -> None:
    assert (grid(*size, 1, 6, 448), grid(*size, 1, 12, 448)) == (at_most_6, at_most_12)


def test_there_are_as_many_grids_as_published() -> None:
    assert (len(grids(1, 6)), len(grids(1, 12))) == (14, 35)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 12))
def test_a_grid_never_has_more_tiles_than_asked_for(width, height, most) -> None:
    columns, rows = grid(width, height, 1, most, 448)
    assert 1 <= columns * rows <= most


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_the_picture_row_by_row_in_three_channels(channels) -> None:
    picture = np.arange(4 * 6 * channels, dtype=np.uint8).reshape(4, 6, channels)
    tiles = cut(picture, 2)
    assert tiles.shape == (6, 2, 2, 3)
    rebuilt = np.concatenate([np.concatenate(list(tiles[row * 3 : row * 3 + 3]), axis=1) for row in range(2)])
    np.testing.assert_array_equal(rebuilt, np.broadcast_to(picture, (4, 6, 3)))


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (8, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(stretch(picture, 4, 8), picture)
    assert stretch(picture, 6, 3).shape == (3, 6, 3)


def test_numbers_of_tiles_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"tiles\.least 3"):
        TileSettings(least=3, most=2)
