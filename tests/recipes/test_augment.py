"""Augmentation depends on (seed, epoch, record id) alone, and respects left and right."""

from __future__ import annotations

import numpy as np
import pytest

from raymed.recipes.augment import AugmentSettings, augment

PRESETS = ["light", "ct", "xray", "flips"]


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
    pictures = _pictures()
    assert augment(pictures, _ids(), settings, 0, 0) is pictures


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
