"""Augmentation by random crops: pictures are prepared a tenth larger than the network sees them, and cut to its size.

A function of (seed, epoch, record id) alone, like `raymed.recipes.augment`. Without augmentation, and when evaluating, the
whole picture is scaled down instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from raymed.recipes.augment import augment, generator
from raymed.recipes.recipe import TrainingPass
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


def crop_pictures(
    pixels: np.ndarray, ids: Sequence[str], size: int, settings: ClipAugmentSettings, training: TrainingPass | None
) -> np.ndarray:
    """Pictures as the network sees them.

    Args:
        pixels: uint8 [rows, channels, prepared, prepared].
        ids: the rows' record ids.
        size: side of the result.
        training: None when evaluating.

    Returns:
        uint8 [rows, channels, size, size].
    """
    if training is None or settings.preset == "none":
        scaled = F.interpolate(torch.from_numpy(pixels), (size, size), mode="bilinear", antialias=True)
        return scaled.numpy()
    keys = training.keys(ids)
    generators = [generator(training.seed, training.epoch, f"crop/{key}") for key in keys]
    draws = np.stack([each.uniform(-1, 1, 12) for each in generators])
    if settings.preset == "standard":
        varied = _turned(pixels, draws[:, :5], size)
        _recolour(varied, draws[:, 5:9])
        varied = np.rint(varied).clip(0, 255).astype(np.uint8)
        _erase(varied, generators)
        return varied
    cropped = _cropped(pixels, draws[:, :2], size)
    if settings.preset == "minimal":
        return np.where((draws[:, 2] < 0)[:, None, None, None], cropped[..., ::-1], cropped)
    return augment(cropped, keys, AugmentSettings("xray"), training.seed, training.epoch)


def _cropped(pixels: np.ndarray, draws: np.ndarray, size: int) -> np.ndarray:
    """Squares cut at whole pixels; draws [rows, 2] in -1..1 place them."""
    room = pixels.shape[-1] - size
    corners = ((draws + 1) / 2 * (room + 1)).astype(int).clip(0, room)
    return np.stack(
        [row[:, top : top + size, left : left + size] for row, (top, left) in zip(pixels, corners.tolist(), strict=True)]
    )


def _turned(pixels: np.ndarray, draws: np.ndarray, size: int) -> np.ndarray:
    """Crop, both mirrorings and rotation in one interpolation, float32; what lies outside the picture is black.

    Args:
        draws: [rows, 5] in -1..1: place of the crop (2), mirrored, upside down, angle.
    """
    whole = pixels.shape[-1]
    angle = np.deg2rad(draws[:, 4] * DEGREES)
    cosine, sine = np.cos(angle), np.sin(angle)
    mirrored, upside_down = np.where(draws[:, 2] < 0, -1, 1), np.where(draws[:, 3] < 0, -1, 1)
    turn = np.stack([mirrored * cosine, -mirrored * sine, upside_down * sine, upside_down * cosine], 1).reshape(-1, 2, 2)
    # output -1..1 is the crop, input -1..1 the whole picture; a crop moved by the whole margin touches the edge
    theta = np.concatenate([turn * (size / whole), draws[:, :2, None] * (1 - size / whole)], axis=2)
    grid = F.affine_grid(torch.from_numpy(theta.astype(np.float32)), [*pixels.shape[:2], size, size], align_corners=False)
    return F.grid_sample(torch.from_numpy(pixels).float(), grid, align_corners=False).numpy()


def _recolour(pictures: np.ndarray, draws: np.ndarray) -> None:
    """Vary brightness, contrast, saturation and hue of float32 pictures [rows, channels, side, side], in place.

    Saturation and hue scale and turn the colour plane of constant luma; grey pictures have none.

    Args:
        draws: [rows, 4] in -1..1, in that order.
    """
    brightness, contrast, saturation = (1 + JITTER * draws[:, :3]).T[:, :, None, None, None]
    pictures *= brightness.astype(np.float32)
    luma = np.einsum("rchw,c->r", pictures, LUMA if pictures.shape[1] == 3 else np.ones(1)) / pictures[0, 0].size
    middle = luma[:, None, None, None].astype(np.float32)
    pictures -= middle
    pictures *= contrast.astype(np.float32)
    pictures += middle
    if pictures.shape[1] == 3:
        matrices = _colour_matrices(saturation.ravel(), 2 * np.pi * HUE * draws[:, 3])
        pictures[:] = np.einsum("rdc,rchw->rdhw", matrices.astype(np.float32), pictures)


def _colour_matrices(saturation: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Matrices [rows, 3, 3] that keep the luma of an RGB colour and scale and turn its chroma (the I and Q of YIQ)."""
    to_yiq = np.stack([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cosine, sine = saturation * np.cos(angle), saturation * np.sin(angle)
    turn = np.zeros((len(angle), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cosine, -sine, sine, cosine
    return np.linalg.inv(to_yiq) @ turn @ to_yiq


def _erase(pictures: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
    """Paint a rectangle in the mean colour over some of the pictures, uint8 [rows, channels, side, side], in place.

    After Zhong et al. 2017, arXiv:1708.04896: area and, on a logarithmic scale, aspect are uniform.
    """
    channels, side = pictures.shape[1], pictures.shape[-1]
    colour = np.array(MEAN_COLOUR if channels == 3 else [round(float(np.mean(MEAN_COLOUR)))], np.uint8)[:, None, None]
    for picture, draw in zip(pictures, generators, strict=True):
        if draw.uniform() < ERASED_SHARE:
            area, aspect = draw.uniform(*ERASED) * side**2, np.exp(draw.uniform(*np.log(ASPECT)))
            height, width = min(side, round(np.sqrt(area * aspect))), min(side, round(np.sqrt(area / aspect)))
            top, left = draw.integers(side - height + 1), draw.integers(side - width + 1)
            picture[:, top : top + height, left : left + width] = colour
