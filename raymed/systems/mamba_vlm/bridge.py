"""The bridge from the encoder's map to tokens that the language model reads: Mamba in both directions, and two others of the
same size, which show what it is worth."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from raymed.systems.mamba_vlm.mamba import MambaMixer

Merge = Literal["concat", "mean"]
HEAD_WIDTH = 64  # of the attention bridge's heads, where the width is a multiple


class MambaLayer(nn.Module):
    """LN(x + Mamba(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = MambaMixer(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens + self.mamba(tokens))


class MambaBridge(nn.Module):
    """One layer reads the tokens forwards, one backwards (Vision Mamba, arXiv:2401.09417).

    Args:
        channels: of the encoder's map.
        width: of the language model.
        merge: `concat` joins both directions' tokens before the last projection; `mean` adds and halves them.
    """

    def __init__(self, channels: int, width: int, merge: Merge = "concat") -> None:
        super().__init__()
        self.merge = merge
        self.proj = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.vim_fwd = MambaLayer(width)
        self.vim_bwd = MambaLayer(width)
        self.out_proj = nn.Linear(2 * width if merge == "concat" else width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens, channels] -> [batch, tokens, width]."""
        tokens = self.norm(self.proj(tokens))
        forwards, backwards = self.vim_fwd(tokens), self.vim_bwd(tokens.flip(1)).flip(1)
        both = torch.cat([forwards, backwards], -1) if self.merge == "concat" else (forwards + backwards) / 2
        return self.out_proj(both)


class LinearBridge(nn.Module):
    """Each token by itself: projections with a normalisation between, no mixing along the sequence."""

    def __init__(self, channels: int, width: int, parameters: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        hidden = max(1, (parameters - _count(self.proj, self.norm) - width) // (2 * width + 1))
        self.hidden = nn.Linear(width, hidden)
        self.out_proj = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens, channels] -> [batch, tokens, width]."""
        return self.out_proj(self.hidden(self.norm(self.proj(tokens))))


class AttentionBridge(nn.Module):
    """One transformer layer: every token sees every other one."""

    def __init__(self, channels: int, width: int, parameters: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(
            width, width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1, batch_first=True
        )
        self.attention_norm = nn.LayerNorm(width)
        self.out_norm = nn.LayerNorm(width)
        spent = _count(self.proj, self.norm, self.attention, self.attention_norm, self.out_norm) + width
        hidden = max(1, (parameters - spent) // (2 * width + 1))
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens, channels] -> [batch, tokens, width]."""
        tokens = self.norm(self.proj(tokens))
        tokens = self.attention_norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.out_norm(tokens + self.feed_forward(tokens))


def build_bridge(kind: Literal["mamba", "linear", "attention"], channels: int, width: int, merge: Merge) -> nn.Module:
    """A bridge of this kind; all kinds have about the parameters of the Mamba bridge."""
    if kind == "mamba":
        return MambaBridge(channels, width, merge)
    with torch.device("meta"):
        parameters = _count(MambaBridge(channels, width, merge))
    return (LinearBridge if kind == "linear" else AttentionBridge)(channels, width, parameters)


def _count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
