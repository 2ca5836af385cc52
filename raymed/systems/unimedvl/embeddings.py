"""Fixed embeddings: of places in a grid, of rotary positions, and of the time of a flow. Each is computed from its formula
where it is needed, in float32 whatever the network computes in; nothing is stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LONGEST_PERIOD = 10_000.0
TIME_WIDTH = 256  # of the sinusoids that the time's MLP is given


def sinusoids(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines of values at `width` / 2 frequencies that fall geometrically from 1 to about 1 / 10,000 (Vaswani et
    al. 2017, arXiv:1706.03762, section 3.5).

    Args:
        values: [n].

    Returns:
        Both float32 [n, width / 2].
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64, device=values.device) / half
    angles = values.double()[:, None] * LONGEST_PERIOD**-exponents
    return angles.sin().float(), angles.cos().float()


def grid_embedding(places: Tensor, side: int, width: int) -> Tensor:
    """Embedding of places in a square grid: the first half of the columns tells the column, the second half the row, each
    by sines and then cosines.

    Args:
        places: row * side + column, int64 [n].

    Returns:
        float32 [n, width].
    """
    parts = [torch.cat(sinusoids(axis, width // 2), 1) for axis in (places % side, places // side)]
    return torch.cat(parts, 1)


def rotary(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al. 2021, arXiv:2104.09864) for heads of a width.

    Args:
        positions: int64 [batch, tokens].

    Returns:
        Both float32 [batch, 1, tokens, width], the two halves of the last dimension alike.
    """
    frequencies = 1 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angles = (positions[..., None].float() * frequencies).repeat(1, 1, 2)[:, None]
    return angles.cos(), angles.sin()


class TimeEmbedder(nn.Module):
    """Embedding of the time of a flow: sinusoids through an MLP (Peebles and Xie 2023, arXiv:2212.09748)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_WIDTH, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, times: Tensor) -> Tensor:
        """times: float32 [n], from 0 (the picture) to 1 (noise). Returns [n, hidden]."""
        sines, cosines = sinusoids(times, TIME_WIDTH)
        return self.mlp(torch.cat([cosines, sines], 1).to(next(self.parameters()).dtype))
