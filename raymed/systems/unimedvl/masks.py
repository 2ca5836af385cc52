"""Who sees whom in a packed sequence, and the attention that keeps to it.

A sample is a row of splits: texts, pictures, and pictures that are being drawn. A token sees every earlier split of its own
sample but those being drawn; a text is causal within itself, a picture sees all of itself, and a noisy picture is seen by
nobody else. Samples never see each other.

Two kernels compute it. Torch's scaled dot product takes a dense mask for each sample; flex attention skips the blocks in
which nobody sees anybody, and is the faster one for long sequences on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.systems.unimedvl.modes import CAUSAL, FULL, NOISE

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

FLEX_FROM = 2000  # tokens, on a GPU; dense masks are faster below about 1,000
BLOCK = 128  # flex attention's


@dataclass(frozen=True, eq=False)
class Splits:
    """The splits of a packed sequence, on the host.

    Attributes:
        lengths: tokens of each split, int64 [splits].
        modes: CAUSAL, FULL or NOISE, int64 [splits].
        samples: which sample each belongs to, ascending from 0, int64 [splits].
    """

    lengths: Tensor
    modes: Tensor
    samples: Tensor

    @property
    def total(self) -> int:
        """Tokens in all."""
        return sum(self.lengths.tolist())

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lengths, modes and samples."""
        lengths, modes, samples = (np.array(each.tolist(), np.int64) for each in (self.lengths, self.modes, self.samples))
        return lengths, modes, samples

    def by_sample(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Lengths and modes of each sample's splits."""
        lengths, modes, samples = self.arrays()
        firsts = np.flatnonzero(np.diff(samples)) + 1
        return list(zip(np.split(lengths, firsts), np.split(modes, firsts), strict=True))


def visible(lengths: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Whether a token (row) of one sample sees another (column): bool [tokens, tokens].

    Args:
        lengths, modes: of the sample's splits, int64 [splits].
    """
    split = np.repeat(np.arange(len(lengths)), lengths)
    mode, place = modes[split], np.arange(len(split))
    same = split[:, None] == split
    inside = (mode[:, None] != CAUSAL) | (place[:, None] >= place)
    earlier = (split[:, None] > split) & (mode != NOISE)
    return (same & inside) | earlier


class DenseAttention:
    """Scaled dot product, sample by sample, each with its own mask."""

    def __init__(self, splits: Splits, device: torch.device) -> None:
        self._lengths: list[int] = []
        self._masks: list[Tensor | None] = []
        for lengths, modes in splits.by_sample():
            causal = bool((modes == CAUSAL).all())  # the kernel's own mask does
            self._lengths.append(int(lengths.sum()))
            mask = None if causal else torch.from_numpy(visible(lengths, modes))
            self._masks.append(None if mask is None else mask.to(device, non_blocking=True))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of each token to those it sees.

        Args:
            layer: number of the layer; all have the same mask.
            query: [1, heads, total, width]; `key` and `value` may have fewer heads, each for a group of the query's.

        Returns:
            [1, heads, total, width].
        """
        queries, keys, values = (states.split(self._lengths, 2) for states in (query, key, value))
        samples = zip(queries, keys, values, self._masks, strict=True)
        return torch.cat([attend(*sample, causal=sample[-1] is None) for sample in samples], dim=2)


class FlexAttention:
    """Flex attention over the whole sequence, compiled once; blocks that nobody sees are left out."""

    def __init__(self, splits: Splits, device: torch.device) -> None:
        self._mask = block_mask(splits, device)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `DenseAttention`."""
        short = -query.shape[2] % BLOCK
        padded = (F.pad(states, (0, 0, 0, short)) for states in (query, key, value))
        attended = _compiled_flex()(*padded, block_mask=self._mask, enable_gqa=query.shape[1] != key.shape[1])
        return attended[:, :, : query.shape[2]]


def block_mask(splits: Splits, device: torch.device) -> BlockMask:
    """Flex attention's mask of a packed sequence, padded to whole blocks; padding sees itself only."""
    from torch.nn.attention.flex_attention import create_block_mask

    lengths, modes, samples = (
        np.append(each, last) for each, last in zip(splits.arrays(), (-splits.total % BLOCK, FULL, -1), strict=True)
    )
    owner = np.repeat(np.arange(len(lengths)), lengths)
    split, mode, sample = (torch.from_numpy(each).to(device) for each in (owner, modes[owner], samples[owner]))

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = (split[query] == split[key]) & ((mode[query] != CAUSAL) | (query >= key))
        earlier = (split[query] > split[key]) & (mode[key] != NOISE)
        return (inside | earlier) & (sample[query] == sample[key])

    total = len(split)
    return create_block_mask(sees, None, None, total, total, device=str(device), BLOCK_SIZE=BLOCK)


def packed_attention(splits: Splits, device: torch.device) -> DenseAttention | FlexAttention:
    """The faster attention for a packed sequence of this length on this device."""
    flex = device.type == "cuda" and splits.total >= FLEX_FROM
    return (FlexAttention if flex else DenseAttention)(splits, device)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """Torch's scaled dot product.

    Args:
        query: [batch, heads, queries, width]; `key` and `value` [batch, fewer or as many heads, keys, width].
        mask: what is seen, bool, to be broadcast to [batch, heads, queries, keys]; without it everything is.
        causal: in place of a mask, a query sees the keys up to its own place.
    """
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=grouped)


@lru_cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
