"""Which visual tokens there are: a region of the encoder's map, pooling, and the cap on their number."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.errors import UserError

RegionMode = Literal["center", "mask", "saliency"]


def region_corners(features: Tensor, side: int, mode: RegionMode, mask: Tensor | None = None) -> Tensor:
    """Top and left of each row's region of side x side, int64 [batch, 2]; it lies within the map.

    Args:
        features: the encoder's map, [batch, channels, height, width].
        side: of the region, in tokens.
        mode: `center`; `mask` centres it on the mask's centre of gravity; `saliency` takes where features are largest.
        mask: [batch, 1, any height, any width] at any resolution, for `mask`; a row whose mask is empty has the centre.

    Raises:
        UserError: `side` is larger than the map, or `mask` was asked for without one.
    """
    batch, _, height, width = features.shape
    if side > min(height, width):
        raise UserError(
            f"vision.roi_side is {side}, and the map has {height} x {width} tokens: give a side up to {min(height, width)}"
        )
    limits = torch.tensor([height - side, width - side], device=features.device)
    centre = limits.div(2, rounding_mode="floor").expand(batch, 2)
    if mode == "center":
        return centre
    if mode == "saliency":
        energy = F.avg_pool2d(features.detach().float().square().mean(1, keepdim=True), side, stride=1)[:, 0]
        best = energy.flatten(1).argmax(1)
        return torch.stack([best // energy.shape[2], best % energy.shape[2]], 1)
    if mask is None:
        raise UserError("vision.roi_mode is mask, and there are no masks: give mask_path in the CSV, or another mode")
    share = F.adaptive_avg_pool2d(mask.float(), (height, width))[:, 0]
    area = share.sum((1, 2))
    rows = (share.sum(2) * torch.arange(height, device=share.device)).sum(1) / area
    columns = (share.sum(1) * torch.arange(width, device=share.device)).sum(1) / area
    corners = torch.stack([rows, columns], 1) - (side - 1) / 2
    corners = corners.nan_to_num().round().long().clamp(min=0).minimum(limits)
    return torch.where((area > 0)[:, None], corners, centre)


def crop(features: Tensor, corners: Tensor, side: int) -> Tensor:
    """Each row's region, [batch, channels, side, side]."""
    offsets = torch.arange(side, device=features.device)
    rows = (corners[:, 0, None] + offsets)[:, None, :, None]
    columns = (corners[:, 1, None] + offsets)[:, None, None, :]
    batch = torch.arange(len(features), device=features.device)[:, None, None, None]
    channels = torch.arange(features.shape[1], device=features.device)[None, :, None, None]
    return features[batch, channels, rows, columns]


def pool(features: Tensor, side: int) -> Tensor:
    """The map averaged down to at most side x side; a smaller one stays as it is."""
    height, width = features.shape[2:]
    size = (min(height, side), min(width, side))
    return features if size == (height, width) else F.adaptive_avg_pool2d(features, size)


def sequence(features: Tensor) -> Tensor:
    """[batch, channels, height, width] -> [batch, height * width, channels], row after row."""
    return features.flatten(2).transpose(1, 2)


def capped_count(count: int, cap: int) -> int:
    """How many of `count` tokens `cap` leaves."""
    if count <= cap:
        return count
    return math.isqrt(cap) ** 2 if math.isqrt(count) ** 2 == count else cap


def cap_tokens(tokens: Tensor, cap: int) -> Tensor:
    """At most `cap` tokens: those of a square map are averaged to the largest square that fits, of others the first are
    kept.

    Args:
        tokens: [batch, tokens, width].
        cap: at least 1.
    """
    batch, count, width = tokens.shape
    kept = capped_count(count, cap)
    if kept == count:
        return tokens
    side = math.isqrt(count)
    if side * side != count:
        return tokens[:, :cap]
    square = tokens.transpose(1, 2).reshape(batch, width, side, side)
    return sequence(F.adaptive_avg_pool2d(square, math.isqrt(kept)))
