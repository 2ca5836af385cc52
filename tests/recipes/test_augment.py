"""Augmentation depends on (seed, epoch, record id) alone, and respects left and right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from raymed.recipes.augment import AugmentSettings, draw, varied, vary
from raymed.recipes.recipe import Batch

PRESETS = ["light", "ct", "xray", "flips"]


def augment(pixels: np.ndarray, ids: Sequence[str], settings: AugmentSettings, seed: int, epoch: int) -> np.ndarray:
    return _batch(pixels, ids, settings, seed, epoch).to(torch.device("cpu")).tensors["pixels"].numpy()


def _batch(pixels: np.ndarray, ids: Sequence[str], settings: AugmentSettings, seed: int, epoch: int) -> Batch:
    batch = Batch({"pixels": torch.from_numpy(pixels)}, {"loss": float(len(ids))}, list(ids))
    return varied(batch, draw(ids, pixels.shape[-1], settings, seed, epoch), vary)


def _pictures(rows: int = 6, channels: int = 1, side: int = 48) -> np.ndarray:
    across = np.linspace(0, 255, side)[None, :] * np.ones((side, 1))  # dark on the left, bright on the right
    return np.broadcast_to(across.astype(np.uint8), (rows, channels, side, side)).copy()


def _ids(rows: int = 6) -> list[str]:
    return [f"patient/{row}" for row in range(rows)]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_record_is_varied_the_same_in_any_batch(preset: str) -> None:
    settings = AugmentSettings(preset, 1.0)  # type: ignore[arg-type]
    pictures, ids = _pictures(), _ids()
    together = augment(pictures, ids, settings, seed=3, epoch=2)
    order = [4, 1, 5]
    apart = augment(pictures[order], [ids[row] for row in order], settings, seed=3, epoch=2)
    assert np.array_equal(apart, together[order])
    assert np.array_equal(augment(pictures, ids, settings, seed=3, epoch=2), together)


@pytest.mark.parametrize("preset", PRESETS)
def test_seed_epoch_and_record_each_change_the_picture(preset: str) -> None:
    settings = AugmentSettings(preset, 1.0)  # type: ignore[arg-type]
    pictures, ids = _pictures(2), ["a", "b"]
    first = augment(pictures, ids, settings, seed=0, epoch=0)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, augment(pictures, ids, settings, seed=0, epoch=1))
    assert not np.array_equal(first, augment(pictures, ids, settings, seed=1, epoch=0))


@pytest.mark.parametrize("settings", [AugmentSettings("none", 1.0), AugmentSettings("ct", 0.0)])
def test_nothing_is_changed_when_off(settings: AugmentSettings) -> None:
    batch = _batch(_pictures(), _ids(), settings, 0, 0)
    assert np.array_equal(batch.tensors["pixels"], _pictures()) and batch.on_arrival is None


def _mirrored(preset: str) -> int:
    rows = 40
    varied = augment(_pictures(rows), _ids(rows), AugmentSettings(preset, 1.0), 0, 0).astype(float)  # type: ignore[arg-type]
    return int((varied[..., :24].mean((1, 2, 3)) > varied[..., 24:].mean((1, 2, 3))).sum())


@pytest.mark.parametrize("preset", ["light", "ct", "xray"])
def test_left_stays_left(preset: str) -> None:
    assert _mirrored(preset) == 0


def test_flips_mirrors_about_half() -> None:
    assert 10 <= _mirrored("flips") <= 30


@pytest.mark.parametrize("preset", PRESETS)
def test_strength_scales_the_change(preset: str) -> None:
    pictures, ids = _pictures(16), _ids(16)

    def change(strength: float) -> float:
        varied = augment(pictures, ids, AugmentSettings(preset, strength), 0, 0)  # type: ignore[arg-type]
        return float(np.abs(varied.astype(int) - pictures).mean())

    # a mirrored picture changes at any strength, so only the others are compared strictly
    assert change(0.2) < change(1.0) and (preset == "flips" or change(0.2) < change(1.0) / 2)


def test_channels_are_varied_alike_and_the_input_is_left_alone() -> None:
    pictures = _pictures(channels=3)
    before = pictures.copy()
    varied = augment(pictures, _ids(), AugmentSettings("ct", 1.0), 0, 0)
    assert np.array_equal(pictures, before)
    assert np.array_equal(varied[:, 0], varied[:, 1]) and varied.dtype == np.uint8 and varied.shape == pictures.shape


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_left_to_a_device_is_done_when_the_batch_gets_there_by_the_same_draws(preset: str) -> None:
    pictures, settings = _pictures(channels=3), AugmentSettings(preset, 1.0)  # type: ignore[arg-type]
    left = _batch(pictures, _ids(), settings, 3, 2)
    assert np.array_equal(left.tensors["pixels"], pictures), "varied before it got there"
    there = left.to(torch.device("cpu"))
    assert there.tensors.keys() == {"pixels"} and there.on_arrival is None
    assert np.array_equal(there.tensors["pixels"], augment(pictures, _ids(), settings, 3, 2))
    assert left.to(torch.device("meta")).tensors["pixels"].is_meta, "it reads what lies on the device"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_device_that_rounds_otherwise_makes_the_same_pictures_but_for_a_grey_value_here_and_there(preset: str) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (16, 1, 64, 64), dtype=np.uint8)
    choices = draw(_ids(16), 64, AugmentSettings(preset, 1.0), 0, 0)  # type: ignore[arg-type]
    exact = {name: drawn.double() if drawn.is_floating_point() else drawn for name, drawn in choices.items()}
    other, own = (vary(torch.from_numpy(pictures), each).int() for each in (exact, choices))
    assert int((other - own).abs().max()) <= 1 and float((other != own).double().mean()) < 1e-3
