"""Where a ViT's patches lie: positions for a start from random weights, and for pictures of another size.

transformers lets a ViT's learned positions start at zero: it then takes a picture for a bag of patches, and a small training
ends before it knows better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raymed.models.backbone_weights import resample_positions

LONGEST = 100.0  # patches of the longest wave


def sine_positions(side: int, width: int) -> Tensor:
    """For a grid of side x side patches, row by row: float32 [side^2, width]. `width` is a multiple of 4."""
    rates = LONGEST ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, width)


def start_positions(vision_tower: Any) -> None:
    """Give an InternViT's patches their positions; that of the class token stays zero."""
    with torch.no_grad():
        patches = vision_tower.embeddings.position_embeddings[0, 1:]
        patches.copy_(sine_positions(round(len(patches) ** 0.5), patches.shape[1]))


def fit_positions(vision_tower: Any, size: int) -> None:
    """Resample an InternViT's positions for pictures of size x size, once, and let its configuration say so."""
    config, embeddings = vision_tower.config, vision_tower.embeddings
    old = embeddings.position_embeddings
    config.image_size = [size, size]
    resampled = resample_positions(old.detach().float(), (size // config.patch_size[0]) ** 2)
    embeddings.position_embeddings = nn.Parameter(resampled.to(old.dtype), old.requires_grad)
