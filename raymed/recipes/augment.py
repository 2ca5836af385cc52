"""Augmentation of a batch of pictures in the worker, as a function of (seed, epoch, record id) alone.

Every record draws from its own generator, so that its picture does not depend on the batch or the worker it falls into.
No preset but `flips` mirrors: left and right mean something in a chest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from raymed.recipes.settings import AugmentSettings


@dataclass(frozen=True)
class _Ranges:
    """Full ranges of a preset: draws are uniform in ± range (noise, erase: 0..range), scaled by the strength."""

    degrees: float
    scale: float  # relative
    shift: float  # of the picture's side
    brightness: float  # of full scale
    contrast: float  # relative
    gamma: float  # of log gamma
    noise: float = 0.0  # standard deviation, of full scale
    erase: float = 0.0  # largest side of the erased square, of the picture's side; half the pictures have one
    mirror: bool = False


_PRESETS = {
    "light": _Ranges(degrees=6, scale=0.06, shift=0.06, brightness=0.06, contrast=0.1, gamma=0.1),
    "ct": _Ranges(degrees=15, scale=0.15, shift=0.1, brightness=0.1, contrast=0.2, gamma=0.2, noise=0.04, erase=0.3),
    "xray": _Ranges(degrees=8, scale=0.15, shift=0.08, brightness=0.15, contrast=0.3, gamma=0.4, noise=0.03, erase=0.3),
    "flips": _Ranges(15, 0.15, 0.1, 0.1, 0.2, 0.2, noise=0.04, erase=0.3, mirror=True),
}


def augment(pixels: np.ndarray, ids: Sequence[str], settings: AugmentSettings, seed: int, epoch: int) -> np.ndarray:
    """Vary pictures: exposure, then rotation, scale and shift, then an erased square and noise.

    Args:
        pixels: uint8 [rows, channels, side, side].
        ids: the rows' record ids.

    Returns:
        uint8, of the same shape; `pixels` itself when there is nothing to do.
    """
    if settings.off:
        return pixels
    ranges, strength = _PRESETS[settings.preset], settings.strength
    generators = [generator(seed, epoch, record) for record in ids]
    draws = np.stack([each.uniform(-1, 1, 12) for each in generators])
    side = pixels.shape[-1]

    tables = _exposure(draws[:, :3] * strength, ranges)
    varied = np.stack([table[picture] for table, picture in zip(tables, pixels, strict=True)])

    theta = _affine(draws[:, 3:7] * strength, ranges)
    if ranges.mirror:
        theta[draws[:, 7] < 0, :, 0] *= -1
    grid = F.affine_grid(torch.from_numpy(theta), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(torch.from_numpy(varied), grid, padding_mode="border", align_corners=False).numpy()

    if ranges.erase:
        sides = (np.abs(draws[:, 8]) * ranges.erase * strength * side).astype(int)
        corners = ((draws[:, 9:11] + 1) / 2 * (side - sides)[:, None]).astype(int)
        for row in np.flatnonzero(draws[:, 11] < 0).tolist():
            top, left, length = int(corners[row, 0]), int(corners[row, 1]), int(sides[row])
            square = moved[row, :, top : top + length, left : left + length]
            square[:] = square.mean() if square.size else 0
    if ranges.noise:
        for row in range(len(moved)):  # grey noise: the same in all channels
            noise = generators[row].standard_normal((side, side), dtype=np.float32)
            noise *= 255 * ranges.noise * strength * generators[row].uniform()
            moved[row] += noise
    return np.rint(moved).clip(0, 255).astype(np.uint8)


def generator(seed: int, epoch: int, record: str) -> np.random.Generator:
    """The draws of one record in one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{record}".encode(), digest_size=8).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "big")))


def _exposure(draws: np.ndarray, ranges: _Ranges) -> np.ndarray:
    """Tables [rows, 256] from old to new grey values, float32: cheaper than arithmetic on every pixel."""
    grey = np.linspace(0, 1, 256)[None]
    grey = grey ** np.exp(draws[:, :1] * ranges.gamma)
    grey = (grey - 0.5) * (1 + draws[:, 1:2] * ranges.contrast) + 0.5 + draws[:, 2:3] * ranges.brightness
    return (grey.clip(0, 1) * 255).astype(np.float32)


def _affine(draws: np.ndarray, ranges: _Ranges) -> np.ndarray:
    """Matrices [rows, 2, 3] from output to input coordinates (both -1..1), float32."""
    angle = np.deg2rad(draws[:, 0] * ranges.degrees)
    scale = np.exp(draws[:, 1] * ranges.scale)
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    shift = 2 * ranges.shift * draws[:, 2:4]
    return np.stack([np.stack([cosine, -sine, shift[:, 0]], 1), np.stack([sine, cosine, shift[:, 1]], 1)], axis=1).astype(
        np.float32
    )
