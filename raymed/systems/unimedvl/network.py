"""The unified network: it reads pictures and text, and draws pictures, in one packed sequence."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from raymed.compat.deepspeed import is_sharded
from raymed.systems.unimedvl.autoencoder import ImageAutoencoder, sampled
from raymed.systems.unimedvl.embeddings import TimeEmbedder, grid_embedding
from raymed.systems.unimedvl.flow import flow_losses, noisy
from raymed.systems.unimedvl.masks import FLEX_FROM, Splits, packed_attention
from raymed.systems.unimedvl.settings import NetworkSizes, UnifiedModelSettings
from raymed.systems.unimedvl.transformer import Experts, LanguageModel, Route, Streams
from raymed.systems.unimedvl.vit import Mlp, VisionModel

ELSEWHERE = 0.1  # of the random weights of attention that begins by looking at its own place


class Losses(TypedDict):
    """What a packed sequence costs.

    `ce` and `mse` are sums with a gradient: of the weighted cross-entropies of supervised tokens, and of the squared errors
    of the velocity. `token_losses`, float32 [supervised], and `latent_losses`, float32 [targets], are each one's, without.
    """

    ce: Tensor
    mse: Tensor
    token_losses: Tensor
    latent_losses: Tensor


class UniMedVL(nn.Module):
    """The network. The autoencoder is frozen and no part of its parameters: no optimizer, average or shard holds it.

    Attributes:
        sizes: what it is built of.
    """

    def __init__(self, sizes: NetworkSizes) -> None:
        """All weights random, and the velocity 0 wherever it is asked."""
        super().__init__()
        hidden = sizes.language.hidden
        self.sizes = sizes
        self.language_model = LanguageModel(sizes.language)
        self.vit_model = VisionModel(sizes.vision)
        self.connector = Mlp(sizes.vision.hidden, hidden, hidden)
        self.vae2llm = nn.Linear(sizes.latent_width, hidden)
        self.llm2vae = nn.Linear(hidden, sizes.latent_width)
        self.time_embedder = TimeEmbedder(hidden)
        self._autoencoder = (ImageAutoencoder(sizes.autoencoder, sizes.latent_patch),)  # in a tuple torch does not look

    @property
    def autoencoder(self) -> ImageAutoencoder:
        """The image autoencoder, on the network's device."""
        held, device = self._autoencoder[0], self.device
        return held if next(held.parameters()).device == device else held.to(device)

    def take_autoencoder(self, autoencoder: ImageAutoencoder) -> None:
        """Draw with this one from now on."""
        self._autoencoder = (autoencoder,)

    @property
    def image_backbone(self) -> nn.Module:
        return self.vit_model

    # Under ZeRO 3 a parameter that is asked for by name outside of its module is gathered, which all workers must do alike.

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def description(self) -> dict[str, str]:
        """Facts to tag a run with."""
        return {
            "backbone": "unimedvl",
            "attention": f"flex from {FLEX_FROM} tokens" if self.device.type == "cuda" else "sdpa",
        }

    def freeze(self, settings: UnifiedModelSettings) -> None:
        """Keep what the settings say as it is, and compute activations again where they say so."""
        decoder = self.language_model.model
        decoder.gradient_checkpointing = settings.gradient_checkpointing
        self.vit_model.vision_model.encoder.gradient_checkpointing = settings.gradient_checkpointing
        decoder.understanding_stands_still = settings.freeze_und
        if settings.freeze_llm:
            self.language_model.requires_grad_(False)
        if settings.freeze_vit or settings.freeze_und:
            self.vit_model.requires_grad_(False)
        if settings.freeze_und:
            experts = [module.understanding for module in decoder.modules() if isinstance(module, Experts)]
            for part in (self.connector, decoder.embed_tokens, *experts):
                part.requires_grad_(False)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Token ids [tokens] as states [tokens, hidden]."""
        return self.language_model.model.embed_tokens(ids)

    def embed_patches(self, patches: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
        """Patches of pictures as states [patches, hidden]; arguments as of `VisionTransformer`."""
        side, hidden = self.sizes.vision.side, self.sizes.language.hidden
        tokens = self.connector(self.vit_model(patches, positions, counts))
        return tokens + grid_embedding(positions, side, hidden).to(tokens.dtype)

    def embed_latents(self, latents: Tensor, times: Tensor, positions: Tensor) -> Tensor:
        """Latent tokens at a time of the flow as states [tokens, hidden].

        Args:
            latents: [tokens, width].
            times: float32 [tokens]; 0 for a picture that is looked at.
            positions: row * `latent_side` + column, int64 [tokens].
        """
        tokens = self.vae2llm(latents.to(self.dtype))
        places = grid_embedding(positions, self.sizes.latent_side, self.sizes.language.hidden).to(tokens.dtype)
        return tokens + self.time_embedder(times) + places

    def forward(
        self,
        positions: Tensor,
        split_lengths: Tensor,
        split_modes: Tensor,
        split_samples: Tensor,
        text_ids: Tensor,
        text_places: Tensor,
        patches: Tensor,
        patch_positions: Tensor,
        patch_places: Tensor,
        patch_counts: Tensor,
        latent_grids: Tensor,
        latent_positions: Tensor,
        latent_places: Tensor,
        times: Tensor,
        noise: Tensor,
        sampling_noise: Tensor,
        targets: Tensor,
        supervised: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        pixels: Tensor | None = None,
        moments: Tensor | None = None,
    ) -> Losses:
        """What a packed sequence costs. Shapes of the first are those of `PackedSequence`.

        Args:
            split_lengths, split_modes, split_samples, patch_counts, latent_grids: on the host.
            times: of the flow at each latent token, 0 for pictures that are looked at; float32 [latents].
            noise: where the flow ends, float32 [latents, width].
            sampling_noise: what the latents are drawn with from the autoencoder's distribution, float32 [latents, width].
            targets: which of the latent tokens are being drawn, int64 [targets].
            pixels: the pictures, or
            moments: what the autoencoder made of them, as `moments_of` gives it.
        """
        if moments is None:
            assert pixels is not None
            moments = self.moments_of(pixels, latent_grids)
        clean = sampled(moments, sampling_noise)
        text = self.embed_text(text_ids)
        seen = self._embed_patches_or_none(patches, patch_positions, patch_counts)
        drawn = self.embed_latents(noisy(clean, noise, times), times, latent_positions)
        streams = Streams(torch.cat([text, seen])[None], drawn[None])
        route = Route(torch.cat([text_places, patch_places]), latent_places)
        attention = packed_attention(Splits(split_lengths, split_modes, split_samples), positions.device)
        last = self.language_model.model(streams, route, positions[None], attention)

        predicting = last.understanding[0].index_select(0, torch.searchsorted(text_places, supervised))
        ce, token_losses, _ = self.language_model.lm_head(predicting, labels, label_weights)
        predicted = self.llm2vae(last.generation[0].index_select(0, targets))
        latent_losses = flow_losses(predicted, clean.index_select(0, targets), noise.index_select(0, targets))
        return Losses(ce=ce, mse=latent_losses.sum(), token_losses=token_losses, latent_losses=latent_losses.detach())

    def moments_of(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Mean and deviation, side by side, of the latent tokens of pictures that lie end to end, each encoded at its own
        size: float32 [latents, 2 * width]."""
        stride = self.sizes.grids.latent_stride
        moments = [pixels.new_zeros(0, 2 * self.sizes.latent_width, dtype=torch.float32)]
        at = 0
        for rows, columns in grids.tolist():
            size = 3 * rows * columns * stride**2
            picture = pixels[at : at + size].view(3, rows * stride, columns * stride)
            moments.append(torch.cat(self.autoencoder.encode(picture), 1))
            at += size
        return torch.cat(moments)

    def _embed_patches_or_none(self, patches: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
        """As `embed_patches`, where there may be no picture at all."""
        if len(patches):
            return self.embed_patches(patches, positions, counts)
        if not self.training and not is_sharded(next(self.parameters())):
            return torch.zeros(0, self.sizes.language.hidden, dtype=self.dtype, device=self.device)
        # All workers use the same parameters in every pass, or their collectives wait for each other: those that sum
        # gradients, and under ZeRO 3 those that gather weights.
        blank = torch.zeros(1, 3 * self.sizes.vision.patch**2, dtype=torch.uint8, device=self.device)
        place = torch.zeros(1, dtype=torch.int64, device=self.device)
        return self.embed_patches(blank, place, torch.ones(1, dtype=torch.int64))[:0]


@torch.no_grad()
def start_weights(network: UniMedVL, copy_understanding: bool = True) -> None:
    """Random weights, drawn from torch's generator: matrices with a deviation of 1 / sqrt(their input's width), no biases,
    a velocity of 0, and latent tokens that look at their own place first.

    Args:
        copy_understanding: but for that, the generation expert starts as the understanding one's copy (`copy_init_moe`).
    """
    _draw(network)
    if copy_understanding:
        _copy_understanding(network)
    _look_at_places(network)
    _stand_still(network)


@torch.no_grad()
def start_generation(network: UniMedVL) -> None:
    """The same for what only drawing needs, where the rest has its weights: the expert is the understanding one's copy."""
    _copy_understanding(network)
    weight = network.language_model.lm_head.weight
    for part in (network.vae2llm, network.llm2vae, network.time_embedder):
        part.to_empty(device=weight.device).to(weight.dtype)
        _draw(part)
    _stand_still(network)


def _draw(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, module.in_features**-0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, module.embedding_dim**-0.5)


def _look_at_places(network: UniMedVL) -> None:
    """Let latent tokens begin by looking at those of their own place in other pictures, as an edit must, which keeps most of
    what it is given: in the first layer, queries and keys are the sines and cosines of row and column at the highest
    frequencies, the only ones by which neighbours differ; and nothing but the place is written there. Left to chance, they
    make a hundredth of a random query, and small networks take tens of thousands of samples to find them.
    """
    attention: Any = network.language_model.model.layers[0].self_attn
    width, quarter = attention.width, network.sizes.language.hidden // 4
    frequencies = max(1, min(width // 4, quarter // 8))
    places = [part * quarter + frequency for part in range(4) for frequency in range(frequencies)]  # of grid_embedding
    rows = torch.arange(width // len(places) * len(places))
    for projection in (attention.q_proj.generation, attention.k_proj.generation):
        for head in projection.weight.split(width):  # views
            head.mul_(ELSEWHERE)
            head[rows, torch.tensor(places).repeat(width // len(places))] += 1
    written: list[Any] = [network.vae2llm, network.time_embedder.mlp[2]]
    for part in written:
        part.weight[places] = 0


def _copy_understanding(network: UniMedVL) -> None:
    for module in network.modules():
        if isinstance(module, Experts):
            state = {key: tensor.clone() for key, tensor in module.understanding.state_dict().items()}
            module.generation.load_state_dict(state, assign=True)


def _stand_still(network: UniMedVL) -> None:
    network.llm2vae.weight.zero_()
    network.llm2vae.bias.zero_()
