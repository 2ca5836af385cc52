"""Augmentation of a batch of pictures in the worker, as a function of (seed, epoch, record id) alone.

Every record draws from its own generator, so that its picture does not depend on the batch or the worker it falls into.
What is drawn is drawn on the host; the work on pixels is done by the device that the batch is for, on each by the same code.
No preset but `flips` mirrors: left and right mean something in a chest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.recipes.recipe import Batch
from raymed.recipes.settings import AugmentSettings

Choices = Mapping[str, Tensor]
"""What was drawn for each picture of a batch, by name, [rows, ...]. Whole numbers are places within pictures, by which these
are cut, so that they stay on the host."""


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


def draw(keys: Sequence[str], side: int, settings: AugmentSettings, seed: int, epoch: int) -> dict[str, Tensor]:
    """How each picture is varied: all that `vary` takes beside the pixels; nothing where pictures stay as they are.

    Args:
        keys: of the pictures, see `TrainingPass.keys`.
        side: of the pictures, in pixels.
    """
    if settings.off:
        return {}
    ranges, strength = _PRESETS[settings.preset], settings.strength
    generators = [generator(seed, epoch, key) for key in keys]
    draws = np.stack([each.uniform(-1, 1, 12) for each in generators])
    theta = _affine(draws[:, 3:7] * strength, ranges)
    if ranges.mirror:
        theta[draws[:, 7] < 0, :, 0] *= -1
    choices = {"tables": _exposure(draws[:, :3] * strength, ranges), "theta": theta}
    if ranges.erase:
        sides = (np.abs(draws[:, 8]) * ranges.erase * strength * side).astype(int)
        corners = ((draws[:, 9:11] + 1) / 2 * (side - sides)[:, None]).astype(int)
        choices["squares"] = np.column_stack([corners, np.where(draws[:, 11] < 0, sides, 0)])
    if ranges.noise:
        choices["noise"] = np.empty((len(keys), 1, side, side), np.float32)  # grey: the same in all channels
        for noise, each in zip(choices["noise"], generators, strict=True):
            each.standard_normal(dtype=np.float32, out=noise[0])
            noise *= 255 * ranges.noise * strength * each.uniform()
    return {name: torch.from_numpy(choice) for name, choice in choices.items()}


def vary(pixels: Tensor, choices: Choices) -> Tensor:
    """Vary pictures: exposure, then rotation, scale and shift, then an erased square and noise.

    Devices round differently: of two, a pixel in thousands differs by a grey value.

    Args:
        pixels: uint8 [rows, channels, side, side].
        choices: what was drawn, numbers with a fraction on the same device.

    Returns:
        uint8, of the same shape.
    """
    varied = choices["tables"].gather(1, pixels.flatten(1).long()).view(pixels.shape)
    grid = F.affine_grid(choices["theta"], list(pixels.shape), align_corners=False)
    varied = F.grid_sample(varied, grid, padding_mode="border", align_corners=False)
    for row, (top, left, length) in enumerate(choices["squares"].tolist() if "squares" in choices else ()):
        if length:
            square = varied[row, :, top : top + length, left : left + length]
            square.copy_(square.mean())
    if "noise" in choices:
        varied += choices["noise"]
    return varied.round_().clamp_(0, 255).to(torch.uint8)


def varied(batch: Batch, choices: Choices, vary: Callable[[Tensor, Choices], Tensor]) -> Batch:
    """The batch, whose `pixels` are varied as `choices` say once it is on its device: a card is faster at it than a host."""
    if not choices:
        return batch

    def on_arrival(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        others = {name: tensor for name, tensor in tensors.items() if name not in choices}
        return others | {"pixels": vary(tensors["pixels"], {name: tensors[name] for name in choices})}

    places = tuple(name for name, drawn in choices.items() if not drawn.is_floating_point())
    return replace(batch, tensors={**batch.tensors, **choices}, on_host=batch.on_host + places, on_arrival=on_arrival)


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
