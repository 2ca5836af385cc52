"""What the network has read so far, kept as each layer's keys and values: nothing is read twice.

A context never changes. Reading on gives a new one, so that several can go on from the same beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.systems.unimedvl.masks import attend, visible
from raymed.systems.unimedvl.modes import CAUSAL, FULL
from raymed.systems.unimedvl.transformer import Route, Streams
from raymed.systems.unimedvl.vit import grid_positions, patches_of

if TYPE_CHECKING:
    from raymed.systems.unimedvl.network import UniMedVL
    from raymed.systems.unimedvl.tokens import TextTokens


@dataclass(frozen=True, eq=False)
class Context:
    """Keys and values of what was read.

    Attributes:
        keys, values: of each layer, [batch, key-value heads, tokens, head width]; none before anything is read.
        positions: rotary position of what comes next, int64 [batch].
        seen: which of the tokens count, bool [batch, tokens]; all, if it is None.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: Tensor
    seen: Tensor | None = None

    @classmethod
    def empty(cls, network: UniMedVL) -> Context:
        """Nothing read yet, by one reader."""
        sizes = network.sizes.language
        shape = (1, sizes.key_value_heads, 0, sizes.head_width)
        nothing = (torch.zeros(shape, dtype=network.dtype, device=network.device),) * sizes.layers
        return cls(nothing, nothing, torch.zeros(1, dtype=torch.int64, device=network.device))

    @classmethod
    def stack(cls, contexts: Sequence[Context]) -> Context:
        """Several contexts of one reader each as one batch, filled up to the longest."""
        lengths = torch.tensor([context.tokens for context in contexts])
        longest = int(lengths.max())

        def stacked(layers: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
            return tuple(
                torch.cat([F.pad(states, (0, 0, 0, longest - states.shape[2])) for states in layer])
                for layer in zip(*layers, strict=True)
            )

        positions = torch.cat([context.positions for context in contexts])
        seen = (torch.arange(longest) < lengths[:, None]).to(positions.device)
        keys, values = stacked([context.keys for context in contexts]), stacked([context.values for context in contexts])
        return cls(keys, values, positions, seen if len(contexts) > 1 else None)

    @property
    def tokens(self) -> int:
        """How many were read."""
        return self.keys[0].shape[2]


class ContextAttention:
    """Attention of new tokens to a context and to each other.

    Attributes:
        keys, values: of each layer, the context's and the new tokens'.
    """

    def __init__(self, context: Context, new: int, mode: int) -> None:
        """Args:
        new: how many tokens are new, all of one split.
        mode: CAUSAL or FULL.
        """
        self.context = context
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._mask = self._make_mask(new, mode)

    def _make_mask(self, new: int, mode: int) -> Tensor | None:
        context = self.context
        if context.seen is None and (mode != CAUSAL or new == 1):
            return None  # everything is seen
        device, readers = context.positions.device, len(context.positions)
        inside = torch.from_numpy(visible(np.array([new]), np.array([mode]))).to(device)
        before = (
            torch.ones(readers, context.tokens, dtype=torch.bool, device=device) if context.seen is None else context.seen
        )
        return torch.cat([before[:, None, None].expand(-1, 1, new, -1), inside.expand(readers, 1, -1, -1)], 3)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys = torch.cat([self.context.keys[layer], key], 2)
        values = torch.cat([self.context.values[layer], value], 2)
        self.keys.append(keys)
        self.values.append(values)
        return attend(query, keys, values, self._mask)


@torch.no_grad()
def read_text(network: UniMedVL, context: Context, ids: Sequence[int]) -> tuple[Context, Tensor]:
    """Read token ids, marks included.

    Returns:
        What was read, and the logits of the token after it, float32 [vocabulary].
    """
    text = network.embed_text(torch.tensor(list(ids), device=network.device))
    positions = context.positions[:, None] + torch.arange(len(ids), device=network.device)
    none = text.new_zeros(1, 0, text.shape[1])
    last, read = _read(network, context, Streams(text[None], none), positions, CAUSAL)
    after = Context(read.keys, read.values, context.positions + len(ids))
    return after, network.language_model.lm_head(last.understanding[0, -1]).float()


@torch.no_grad()
def look_at(network: UniMedVL, context: Context, tokens: TextTokens, picture: Tensor) -> Context:
    """Read a picture through the ViT, between its marks; all its tokens share a position.

    Args:
        picture: uint8 [height, width, 3], resized for the ViT.
    """
    grids = network.sizes.grids
    patches = patches_of(picture, grids.vit_patch).to(network.device)
    rows, columns = picture.shape[0] // grids.vit_patch, picture.shape[1] // grids.vit_patch
    places = grid_positions(rows, columns, grids.vit_side).to(network.device)
    seen = network.embed_patches(patches, places, torch.tensor([len(patches)]))
    marks = embed_marks(network, tokens)
    streams = Streams(torch.cat([marks[:1], seen, marks[1:]])[None], seen.new_zeros(1, 0, seen.shape[1]))
    positions = context.positions[:, None].expand(-1, len(patches) + 2)
    _, read = _read(network, context, streams, positions, FULL)
    return Context(read.keys, read.values, context.positions + 1)


@torch.no_grad()
def take_in(network: UniMedVL, context: Context, tokens: TextTokens, picture: Tensor) -> Context:
    """Read a picture as the autoencoder's latents, between its marks; all its tokens share a position.

    Args:
        picture: uint8 [height, width, 3], resized for the autoencoder.
    """
    stride = network.sizes.grids.latent_stride
    rows, columns = picture.shape[0] // stride, picture.shape[1] // stride
    latents, _ = network.autoencoder.encode(picture.permute(2, 0, 1).contiguous().to(network.device))
    times = torch.zeros(len(latents), device=network.device)
    _, read = read_latents(network, context, tokens, latents, times, rows, columns)
    return Context(read.keys, read.values, context.positions + 1)


def read_latents(
    network: UniMedVL, context: Context, tokens: TextTokens, latents: Tensor, times: Tensor, rows: int, columns: int
) -> tuple[Tensor, Context]:
    """Read latent tokens at a time of the flow, between their marks, by every reader of the context.

    Args:
        latents: [rows * columns, width].
        times: float32 [rows * columns].

    Returns:
        The latent tokens' last states [readers, rows * columns, hidden], and what was read.
    """
    places = grid_positions(rows, columns, network.sizes.latent_side).to(network.device)
    drawn = network.embed_latents(latents, times, places)
    readers = len(context.positions)
    streams = Streams(embed_marks(network, tokens).expand(readers, -1, -1), drawn.expand(readers, -1, -1))
    positions = context.positions[:, None].expand(-1, len(drawn) + 2)
    last, read = _read(network, context, streams, positions, FULL)
    return last.generation, read


def embed_marks(network: UniMedVL, tokens: TextTokens) -> Tensor:
    """The marks around a picture as states [2, hidden]."""
    return network.embed_text(torch.tensor([tokens.vision_start, tokens.vision_end], device=network.device))


def _read(network: UniMedVL, context: Context, streams: Streams, positions: Tensor, mode: int) -> tuple[Streams, Context]:
    """Read one split. Latents, where there are any, lie between two marks."""
    text, latents = streams.understanding.shape[1], streams.generation.shape[1]
    places = torch.arange(text + latents, device=network.device)
    route = Route(places[[0, -1]], places[1:-1]) if latents else Route(places, places[:0])
    attention = ContextAttention(context, text + latents, mode)
    last = network.language_model.model(streams, route, positions, attention)
    return last, Context(tuple(attention.keys), tuple(attention.values), context.positions)
