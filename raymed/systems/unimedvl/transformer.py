"""A decoder with two experts (mixture of transformers, Liang et al. 2024, arXiv:2411.04996).

Text, and pictures as the ViT sees them, go through the understanding expert; latents go through the generation expert. Each
has all weights of a Qwen2 decoder for itself; they meet in the attention, which is over the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm, apply_rotary_pos_emb

from raymed.models.answer_head import AnswerHead
from raymed.systems.unimedvl.embeddings import rotary
from raymed.systems.unimedvl.settings import LanguageSizes


class Streams(NamedTuple):
    """States of the two experts' tokens: [batch, tokens, ...] each."""

    understanding: Tensor
    generation: Tensor

    def plus(self, other: Streams) -> Streams:
        return Streams(self.understanding + other.understanding, self.generation + other.generation)


class Route:
    """Where in the sequence the two experts' tokens lie.

    Attributes:
        places: of each expert's tokens, int64 [tokens].
    """

    def __init__(self, understanding: Tensor, generation: Tensor) -> None:
        self.places = (understanding, generation)
        self._order = torch.cat(self.places).argsort()

    def join(self, streams: Streams) -> Tensor:
        """Both experts' states in the order of the sequence: [batch, sequence, ...]."""
        return torch.cat(streams, 1).index_select(1, self._order)

    def split(self, states: Tensor) -> Streams:
        """What `join` was given."""
        understanding, generation = (states.index_select(1, places) for places in self.places)
        return Streams(understanding, generation)


class Attention(Protocol):
    """Who sees whom: given [batch, heads, tokens, width] of a layer's queries, keys and values, what the tokens see."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


class Experts(nn.Module):
    """The same layer twice, with weights of its own for each expert."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.understanding = make()
        self.generation = make()

    def forward(self, streams: Streams) -> Streams:
        return Streams(self.understanding(streams.understanding), self.generation(streams.generation))


class JointAttention(nn.Module):
    """Qwen2's attention with normalised queries and keys, over both experts' tokens."""

    def __init__(self, sizes: LanguageSizes, layer: int) -> None:
        super().__init__()
        self.layer, self.width = layer, sizes.head_width
        queries, keys = sizes.heads * self.width, sizes.key_value_heads * self.width
        self.q_proj = Experts(lambda: nn.Linear(sizes.hidden, queries))
        self.k_proj = Experts(lambda: nn.Linear(sizes.hidden, keys))
        self.v_proj = Experts(lambda: nn.Linear(sizes.hidden, keys))
        self.o_proj = Experts(lambda: nn.Linear(queries, sizes.hidden, bias=False))
        self.q_norm = Experts(lambda: Qwen2RMSNorm(self.width, sizes.norm_eps))
        self.k_norm = Experts(lambda: Qwen2RMSNorm(self.width, sizes.norm_eps))

    def forward(self, streams: Streams, route: Route, positions: tuple[Tensor, Tensor], attention: Attention) -> Streams:
        query = route.join(self.q_norm(self._heads(self.q_proj(streams)))).transpose(1, 2)
        key = route.join(self.k_norm(self._heads(self.k_proj(streams)))).transpose(1, 2)
        value = route.join(self._heads(self.v_proj(streams))).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *positions, unsqueeze_dim=1)
        attended = attention(self.layer, query, key, value).transpose(1, 2).flatten(2)
        return self.o_proj(route.split(attended))

    def _heads(self, streams: Streams) -> Streams:
        understanding, generation = (states.unflatten(2, (-1, self.width)) for states in streams)
        return Streams(understanding, generation)


class MixtureLayer(nn.Module):
    """One layer of the decoder."""

    def __init__(self, sizes: LanguageSizes, config: Qwen2Config, layer: int) -> None:
        super().__init__()
        self.self_attn = JointAttention(sizes, layer)
        self.mlp = Experts(lambda: Qwen2MLP(config))
        self.input_layernorm = Experts(lambda: Qwen2RMSNorm(sizes.hidden, sizes.norm_eps))
        self.post_attention_layernorm = Experts(lambda: Qwen2RMSNorm(sizes.hidden, sizes.norm_eps))

    def forward(self, streams: Streams, route: Route, positions: tuple[Tensor, Tensor], attention: Attention) -> Streams:
        streams = streams.plus(self.self_attn(self.input_layernorm(streams), route, positions, attention))
        return streams.plus(self.mlp(self.post_attention_layernorm(streams)))


class MixtureDecoder(nn.Module):
    """The decoder: embedded tokens to their last states.

    Attributes:
        understanding_stands_still: no gradient goes through the understanding expert's states (`freeze_und`).
        gradient_checkpointing: activations are computed again in the backward pass.
    """

    understanding_stands_still = False
    gradient_checkpointing = False

    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.sizes = sizes
        config = Qwen2Config(hidden_size=sizes.hidden, intermediate_size=sizes.intermediate, num_attention_heads=sizes.heads)
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.layers = nn.ModuleList(MixtureLayer(sizes, config, layer) for layer in range(sizes.layers))
        self.norm = Experts(lambda: Qwen2RMSNorm(sizes.hidden, sizes.norm_eps))

    def forward(self, streams: Streams, route: Route, positions: Tensor, attention: Attention) -> Streams:
        """Last states of the tokens.

        Args:
            streams: the experts' embedded tokens.
            route: where in the sequence they lie.
            positions: rotary positions in the order of the sequence, int64 [batch, sequence].
            attention: who sees whom.
        """
        dtype = streams.understanding.dtype
        cosines, sines = (table[:, 0].to(dtype) for table in rotary(positions, self.sizes.head_width, self.sizes.rope_theta))
        for layer in self.layers:
            if self.understanding_stands_still:
                streams = streams._replace(understanding=streams.understanding.detach())
            if self.gradient_checkpointing and self.training:
                streams = checkpoint(layer, streams, route, (cosines, sines), attention, use_reentrant=False)
            else:
                streams = layer(streams, route, (cosines, sines), attention)
        if self.understanding_stands_still:
            streams = streams._replace(understanding=streams.understanding.detach())
        return self.norm(streams)


class LanguageModel(nn.Module):
    """The decoder and its output layer."""

    def __init__(self, sizes: LanguageSizes) -> None:
        super().__init__()
        self.model = MixtureDecoder(sizes)
        self.lm_head = AnswerHead(sizes.hidden, sizes.vocabulary, bias=False)
