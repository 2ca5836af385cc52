"""Where a patch lies, as sines and cosines of its row and column, for a ViT that starts from random weights.

transformers lets a ViT's learned positions start at zero: it then takes a picture for a bag of patches, and a small training
ends before it knows better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LONGEST = 100.0  # patches of the longest wave


def sine_positions(side: int, width: int) -> Tensor:
    """For a grid of side x side patches, row by row: float32 [side^2, width]. `width` is a multiple of 4."""
    rates = LONGEST ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, width)


def start_positions(vision_tower: nn.Module) -> None:
    """Give an InternViT's patches their positions; that of the class token stays zero."""
    embeddings: Any = vision_tower.embeddings
    with torch.no_grad():
        patches = embeddings.position_embeddings[0, 1:]
        patches.copy_(sine_positions(round(len(patches) ** 0.5), patches.shape[1]))
