"""Crops depend on (seed, epoch, record id) alone, stay within the picture, and mirror only where the preset says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymed.systems.clip.crops import (
    MEAN_COLOUR,
    ClipAugmentSettings,
    _colour_matrices,
    _paint,
    _recolour,
    _rectangles,
    _turns,
    crop,
    draw_crops,
    prepared_size,
    scale_down,
)

PRESETS = ["minimal", "standard", "radiograph"]
SIZE, PREPARED = 40, 44


def _pictures(rows: int = 6, channels: int = 1) -> np.ndarray:
    """Dark on the left, bright on the right."""
    across = np.linspace(20, 230, PREPARED)[None, :] * np.ones((PREPARED, 1))
    return np.broadcast_to(across.astype(np.uint8), (rows, channels, PREPARED, PREPARED)).copy()


def _ids(rows: int = 6) -> list[str]:
    return [f"patient/{row}" for row in range(rows)]


def _crop(preset: str, pictures: np.ndarray, ids: list[str], seed: int = 0, epoch: int = 0) -> np.ndarray:
    choices = draw_crops(ids, PREPARED, SIZE, ClipAugmentSettings(preset), seed, epoch)  # type: ignore[arg-type]
    return crop(torch.from_numpy(pictures), choices, SIZE).numpy()


def _turned(pictures: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Without another colour."""
    theta, ones = torch.from_numpy(_turns(draws, SIZE / PREPARED).astype(np.float32)), torch.ones(len(draws))
    drawn = {
        "theta": theta,
        "brightness": ones,
        "contrast": ones,
        "rectangles": torch.zeros(len(draws), 4, dtype=torch.int64),
    }
    return crop(torch.from_numpy(pictures), drawn, SIZE).numpy().astype(float)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_record_is_varied_the_same_in_any_batch_and_otherwise_in_any_other_pass(preset: str) -> None:
    pictures, ids = _pictures(channels=3), _ids()
    together = _crop(preset, pictures, ids)
    assert together.shape == (6, 3, SIZE, SIZE) and together.dtype == np.uint8
    order = [4, 1, 5]
    assert np.array_equal(_crop(preset, pictures[order], [ids[row] for row in order]), together[order])
    assert not np.array_equal(_crop(preset, pictures, ids, epoch=1), together)
    assert not np.array_equal(_crop(preset, pictures, ids, seed=1), together)
    assert len({picture.tobytes() for picture in together}) > 1, "records are varied alike"


def test_evaluation_scales_the_whole_picture_down() -> None:
    scaled = scale_down(torch.from_numpy(_pictures()), SIZE)
    assert scaled.shape == (6, 1, SIZE, SIZE) and scaled.dtype == torch.uint8
    assert abs(int(scaled[0, 0, 0, 0]) - 20) < 5 and abs(int(scaled[0, 0, 0, -1]) - 230) < 5


def test_minimal_cuts_whole_pixels_anywhere_and_mirrors_half() -> None:
    rows = 200
    pictures = _pictures(rows)
    cropped = _crop("minimal", pictures, _ids(rows))
    mirrored = cropped[:, 0, 0, 0] > cropped[:, 0, 0, -1]
    assert 70 < mirrored.sum() < 130
    upright = np.where(mirrored[:, None, None, None], cropped[..., ::-1], cropped)
    offsets = {pictures[0, 0, 0].tolist().index(row[0, 0, 0]) for row in upright}
    assert offsets == {0, 1, 2, 3, 4}
    for row in upright:
        start = pictures[0, 0, 0].tolist().index(row[0, 0, 0])
        assert np.array_equal(row[0], pictures[0, 0, :SIZE, start : start + SIZE])


def test_a_radiograph_is_never_mirrored() -> None:
    rows = 60
    varied = _crop("radiograph", _pictures(rows), _ids(rows)).astype(float)
    assert (varied[..., : SIZE // 2].mean((1, 2, 3)) < varied[..., SIZE // 2 :].mean((1, 2, 3))).all()


def test_standard_mirrors_both_ways() -> None:
    rows = 200
    pictures = np.concatenate([_pictures(rows // 2), _pictures(rows // 2).transpose(0, 1, 3, 2)])
    varied = _crop("standard", pictures, _ids(rows)).astype(float)
    half = SIZE // 2
    across = varied[: rows // 2, ..., :half].mean((1, 2, 3)) > varied[: rows // 2, ..., half:].mean((1, 2, 3))
    down = varied[rows // 2 :, :, :half].mean((1, 2, 3)) > varied[rows // 2 :, :, half:].mean((1, 2, 3))
    assert 30 < across.sum() < 70 and 30 < down.sum() < 70


def test_without_a_turn_the_interpolated_crop_is_the_cut_one() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 1, PREPARED, PREPARED), dtype=np.uint8)
    draws = np.array([[1.0, -1.0, 1.0, 1.0, 0.0], [-1.0, 1.0, -1.0, -1.0, 0.0]])
    turned = _turned(pictures, draws)
    np.testing.assert_allclose(turned[0, 0], pictures[0, 0, :SIZE, 4:], atol=1e-2)
    np.testing.assert_allclose(turned[1, 0], pictures[1, 0, 4:, :SIZE][::-1, ::-1], atol=1e-2)


def test_rotation_keeps_the_middle_and_its_angle() -> None:
    pictures = np.zeros((2, 1, PREPARED, PREPARED), np.uint8)
    pictures[:, :, PREPARED // 2 - 1 : PREPARED // 2 + 1] = 255  # a level bar
    turned = _turned(pictures, np.array([[0, 0, 1, 1, 1.0], [0, 0, -1, 1, 1.0]]))
    heights = turned[:, 0].argmax(1)
    slope = (heights[:, -4] - heights[:, 3]) / (SIZE - 7)
    assert np.abs(slope) == pytest.approx(np.tan(np.deg2rad(15)), abs=0.05)
    assert slope[0] == slope[1], "a mirrored picture is turned, not a turned one mirrored"


def test_brightness_and_contrast_are_factors_and_grey_stays_grey_in_colour() -> None:
    varied = torch.full((1, 3, 2, 2), 100.0)
    varied[..., 0] = 60.0
    colours = torch.from_numpy(_colour_matrices(np.full(1, 1.2), np.full(1, 0.6))).float()
    _recolour(varied, {"brightness": torch.tensor([1.2]), "contrast": torch.tensor([0.8]), "colours": colours})
    assert varied[0, :, 0, 0].tolist() == pytest.approx([96 - 0.8 * 24] * 3, abs=0.01)
    assert varied[0, :, 0, 1].tolist() == pytest.approx([96 + 0.8 * 24] * 3, abs=0.01)


def test_saturation_and_hue_keep_the_luma() -> None:
    luma = np.array([0.299, 0.587, 0.114])
    colour = np.array([200.0, 40.0, 90.0])
    for saturation, angle in ((0.8, 0.0), (1.2, 0.6), (1.0, -0.6)):
        changed = _colour_matrices(np.array([saturation]), np.array([angle]))[0] @ colour
        assert luma @ changed == pytest.approx(luma @ colour, abs=0.05)
        assert not np.allclose(changed, colour)
    np.testing.assert_allclose(_colour_matrices(np.ones(1), np.zeros(1))[0], np.eye(3), atol=1e-9)


def test_a_tenth_of_pictures_lose_a_rectangle_of_up_to_a_third() -> None:
    rows = 1000
    painted = torch.full((rows, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    _paint(painted, torch.from_numpy(_rectangles([np.random.default_rng(row) for row in range(rows)], SIZE)))
    pictures = painted.numpy()
    erased = (pictures[:, 0] != 255).mean((1, 2))
    touched = erased[erased > 0]
    assert 70 < len(touched) < 130
    assert touched.max() < 0.36 and touched.min() > 0.01
    assert set(np.unique(pictures).tolist()) == {*MEAN_COLOUR, 255}


def test_prepared_pictures_are_a_tenth_larger() -> None:
    assert [prepared_size(size) for size in (224, 112, 64)] == [246, 123, 70]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_device_that_rounds_otherwise_makes_the_same_crops_but_for_a_grey_value_here_and_there(preset: str) -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, PREPARED, PREPARED), dtype=np.uint8))
    choices = draw_crops(_ids(8), PREPARED, SIZE, ClipAugmentSettings(preset), 0, 0)  # type: ignore[arg-type]
    exact = {name: drawn.double() if drawn.is_floating_point() else drawn for name, drawn in choices.items()}
    other, own = (crop(pictures, each, SIZE).int() for each in (exact, choices))
    assert int((other - own).abs().max()) <= 1 and float((other != own).double().mean()) < 1e-3
