"""Augmentation by random crops: pictures are prepared a tenth larger than the network sees them, and cut to its size.

A function of (seed, epoch, record id) alone, like `raymed.recipes.augment`. Without augmentation, and when evaluating, the
whole picture is scaled down instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.recipes import augment
from raymed.recipes.augment import Choices, generator
from raymed.recipes.settings import AugmentSettings
from raymed.systems.clip.settings import ClipAugmentSettings

MARGIN = 1.1
DEGREES = 15.0
JITTER = 0.2  # of brightness, contrast and saturation, as a factor
HUE = 0.1  # of a full turn
ERASED = (0.02, 0.33)  # of the picture's area
ERASED_SHARE = 0.1  # of the pictures
ASPECT = (0.3, 3.3)  # of the erased rectangle
MEAN_COLOUR = (124, 116, 104)  # ImageNet's, 0 after normalising
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def prepared_size(size: int) -> int:
    """Side of the prepared pictures from which crops of `size` are taken."""
    return round(MARGIN * size)


def scale_down(pixels: Tensor, size: int) -> Tensor:
    """Whole pictures as the network sees them, uint8 [rows, channels, size, size]."""
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def draw_crops(
    keys: Sequence[str], whole: int, size: int, settings: ClipAugmentSettings, seed: int, epoch: int
) -> dict[str, Tensor]:
    """How each picture is cut and varied: all that `crop` takes beside the pixels. The preset is not `none`.

    Args:
        keys: of the pictures, see `TrainingPass.keys`.
        whole: side of the prepared pictures.
        size: side of the result.
    """
    generators = [generator(seed, epoch, f"crop/{key}") for key in keys]
    draws = np.stack([each.uniform(-1, 1, 12) for each in generators])
    if settings.preset == "standard":
        brightness, contrast, saturation = 1 + JITTER * draws[:, 5:8].T
        choices = {
            "theta": _turns(draws[:, :5], size / whole),
            "brightness": brightness,
            "contrast": contrast,
            "colours": _colour_matrices(saturation, 2 * np.pi * HUE * draws[:, 8]),
        }
        drawn = {name: torch.from_numpy(choice.astype(np.float32)) for name, choice in choices.items()}
        return drawn | {"rectangles": torch.from_numpy(_rectangles(generators, size))}
    room = whole - size
    corners = ((draws[:, :2] + 1) / 2 * (room + 1)).astype(int).clip(0, room)
    mirrored = draws[:, 2] < 0 if settings.preset == "minimal" else np.zeros(len(draws), bool)
    cuts = {"cuts": torch.from_numpy(np.column_stack([corners, mirrored]))}
    if settings.preset == "minimal":
        return cuts
    return cuts | augment.draw(keys, size, AugmentSettings("xray"), seed, epoch)


def crop(pixels: Tensor, choices: Choices, size: int) -> Tensor:
    """Cut and vary pictures.

    Args:
        pixels: uint8 [rows, channels, whole, whole].
        choices: what was drawn, numbers with a fraction on the same device.
        size: side of the result.

    Returns:
        uint8 [rows, channels, size, size].
    """
    if "cuts" in choices:
        cuts = zip(pixels, choices["cuts"].tolist(), strict=True)
        squares = ((row[:, top : top + size, left : left + size], mirrored) for row, (top, left, mirrored) in cuts)
        cropped = torch.stack([square.flip(-1) if mirrored else square for square, mirrored in squares])
        return augment.vary(cropped, choices) if "theta" in choices else cropped
    # crop, mirrorings and rotation in one interpolation; what lies outside the picture is black
    grid = F.affine_grid(choices["theta"], [*pixels.shape[:2], size, size], align_corners=False)
    varied = F.grid_sample(pixels.to(grid.dtype), grid, align_corners=False)
    _recolour(varied, choices)
    painted = varied.round_().clamp_(0, 255).to(torch.uint8)
    _paint(painted, choices["rectangles"])
    return painted


def _turns(draws: np.ndarray, share: float) -> np.ndarray:
    """Matrices [rows, 2, 3] from output to input coordinates (both -1..1): crop, both mirrorings and rotation.

    Args:
        draws: [rows, 5] in -1..1: place of the crop (2), mirrored, upside down, angle.
        share: of the picture's side that a crop has.
    """
    angle = np.deg2rad(draws[:, 4] * DEGREES)
    cosine, sine = np.cos(angle), np.sin(angle)
    mirrored, upside_down = np.where(draws[:, 2] < 0, -1, 1), np.where(draws[:, 3] < 0, -1, 1)
    turn = np.stack([mirrored * cosine, -mirrored * sine, upside_down * sine, upside_down * cosine], 1).reshape(-1, 2, 2)
    # output -1..1 is the crop, input -1..1 the whole picture; a crop moved by the whole margin touches the edge
    return np.concatenate([turn * share, draws[:, :2, None] * (1 - share)], axis=2)


def _recolour(pictures: Tensor, choices: Choices) -> None:
    """Vary brightness, contrast, saturation and hue of float32 pictures [rows, channels, side, side], in place.

    Saturation and hue scale and turn the colour plane of constant luma; grey pictures have none.
    """
    brightness, contrast = (choices[name][:, None, None, None] for name in ("brightness", "contrast"))
    pictures *= brightness
    colours = pictures.mean((2, 3), keepdim=True).split(1, dim=1)
    grey = len(colours) == 1
    middle = colours[0] if grey else sum(share * colour for share, colour in zip(LUMA.tolist(), colours, strict=True))
    pictures.sub_(middle).mul_(contrast).add_(middle)
    if not grey:
        pictures.copy_((choices["colours"] @ pictures.flatten(2)).view_as(pictures))


def _colour_matrices(saturation: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Matrices [rows, 3, 3] that keep the luma of an RGB colour and scale and turn its chroma (the I and Q of YIQ)."""
    to_yiq = np.stack([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cosine, sine = saturation * np.cos(angle), saturation * np.sin(angle)
    turn = np.zeros((len(angle), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cosine, -sine, sine, cosine
    return np.linalg.inv(to_yiq) @ turn @ to_yiq


def _rectangles(generators: Sequence[np.random.Generator], side: int) -> np.ndarray:
    """Top, left, height and width [rows, 4] of what is painted over in each picture; all 0 in most.

    After Zhong et al. 2017, arXiv:1708.04896: area and, on a logarithmic scale, aspect are uniform.
    """
    rectangles = np.zeros((len(generators), 4), int)
    for rectangle, draw in zip(rectangles, generators, strict=True):
        if draw.uniform() < ERASED_SHARE:
            area, aspect = draw.uniform(*ERASED) * side**2, np.exp(draw.uniform(*np.log(ASPECT)))
            height, width = min(side, round(np.sqrt(area * aspect))), min(side, round(np.sqrt(area / aspect)))
            rectangle[:] = draw.integers(side - height + 1), draw.integers(side - width + 1), height, width
    return rectangles


def _paint(pictures: Tensor, rectangles: Tensor) -> None:
    """Paint rectangles in the mean colour over pictures, uint8 [rows, channels, side, side], in place."""
    colour = MEAN_COLOUR if pictures.shape[1] == 3 else (round(float(np.mean(MEAN_COLOUR))),)
    for picture, (top, left, height, width) in zip(pictures, rectangles.tolist(), strict=True):
        if height:
            for channel, value in zip(picture, colour, strict=True):
                channel[top : top + height, left : left + width] = value
