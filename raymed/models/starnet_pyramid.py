"""The dual pyramid on StarNet with residual cascaded fusion (`starnet_dual_pyramid_rcf`).

Two pyramids see the picture at strides 4, 8, 16 and 32: a local one of star blocks and a global one of attention over all
places. At each stride an adapter brings the global map to the local one, a learned weight mixes the two, and the mixture is
added, with a factor that starts at 0, to what the next local stage sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from raymed.models.starnet import STEM, ConvNorm, StarBlock, StarNetConfig, StarNetPreTrainedModel, drop_path_rates

HEADS = 4


class StarNetPyramidConfig(StarNetConfig):
    """Shape of the dual pyramid.

    Attributes:
        global_depths: attention blocks per stage of the global pyramid; widths are those of the local one.
    """

    model_type = "starnet_dual_pyramid_rcf"

    global_depths: Sequence[int] = (1, 1, 1, 1)
    drop_path_rate: float = 0.1


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, batch normalisation and GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvNorm(inputs, outputs, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, inputs, height, width] to [rows, outputs, height / 2, width / 2]."""
        return F.gelu(self.conv(x))


class AttentionBlock(nn.Module):
    """A transformer block with normalisation before attention and before the feed-forward layers."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, places, width]."""
        x = x + self.project(self._attend(self.qkv(self.norm_attention(x))))
        return x + self.fc2(F.gelu(self.fc1(self.norm_mlp(x))))

    def _attend(self, qkv: Tensor) -> Tensor:
        rows, places, width = *qkv.shape[:2], qkv.shape[2] // 3
        heads = qkv.view(rows, places, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        # Kernels that do not hold all places x places weights want heads of a multiple of 8; zeros change no product.
        query, key, value = F.pad(heads, (0, -(width // HEADS) % 8))
        attended = F.scaled_dot_product_attention(query, key, value, scale=(width // HEADS) ** -0.5)
        return attended[..., : width // HEADS].transpose(1, 2).reshape(rows, places, width)


class GlobalStage(nn.Module):
    """A 3x3 convolution of stride 2, and attention between all places."""

    def __init__(self, inputs: int, channels: int, depth: int, ratio: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(inputs, channels, 3, stride=2, padding=1)
        self.position = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(AttentionBlock(channels, ratio) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[rows, inputs, height, width] to [rows, channels, height / 2, width / 2]."""
        x = self.downsample(x)
        height, width = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        places = place_waves(height, width, x.shape[1], x.device).to(self.position.weight.dtype)
        tokens = self.norm(tokens + self.position(places))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class Adapter(nn.Module):
    """Fits the global map to the local one: 1x1, residual, 1x1, normalised over all channels, times a small factor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GroupNorm(1, channels))
        self.outer = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GroupNorm(1, channels))
        self.scale = nn.Parameter(torch.full((1,), 0.01))  # DeepSpeed takes no parameter without a dimension

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, channels, height, width]."""
        return self.scale * self.outer(x + self.inner(x))


class PyramidStage(nn.Module):
    """One stride of both pyramids, and their fusion."""

    def __init__(self, inputs: int, channels: int, rates: Sequence[float], config: StarNetPyramidConfig, last: bool) -> None:
        super().__init__()
        index = config.hidden_sizes.index(channels)
        self.downsample = Downsample(inputs, channels)
        self.blocks = nn.ModuleList(StarBlock(channels, config.ratio, rate, nn.ReLU()) for rate in rates)
        self.surround = GlobalStage(inputs, channels, config.global_depths[index], config.ratio)
        self.adapter = Adapter(channels)
        start = 0.3 if channels <= 2 * config.width else 0.4 if channels <= 4 * config.width else 0.45
        self.balance = nn.Parameter(torch.full((1,), start))
        self.cascade = None if last else nn.Parameter(torch.zeros(1))

    def forward(self, local: Tensor, surround: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both pyramids' maps [rows, inputs, height, width] to what the next stage sees, and the fused map.

        Returns:
            The local map for the next stage, the global and the fused one, each [rows, channels, height / 2, width / 2].
        """
        local = self.downsample(local)
        for block in self.blocks:
            local = block(local)
        surround = self.surround(surround)
        share = self.balance.sigmoid()
        fused = (1 - share) * local + share * self.adapter(surround)
        return (local if self.cascade is None else local + self.cascade * fused), surround, fused


class StarNetPyramidModel(StarNetPreTrainedModel):
    """The backbone without a classification layer; its features are the mean of the last fused map."""

    config_class = StarNetPyramidConfig

    def __init__(self, config: StarNetPyramidConfig) -> None:
        super().__init__(config)
        self.local_stem, self.global_stem = Downsample(3, STEM), Downsample(3, STEM)
        rates, sizes = drop_path_rates(config.drop_path_rate, config.depths), config.hidden_sizes
        self.stages = nn.ModuleList(
            PyramidStage(inputs, channels, rate, config, last=channels == sizes[-1])
            for inputs, channels, rate in zip([STEM, *sizes[:-1]], sizes, rates, strict=True)
        )
        self.norm = nn.BatchNorm2d(sizes[-1])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Features of normalised pictures [rows, 3, height, width]: the fused map of stride 32 and its mean."""
        local, surround = self.local_stem(pixel_values), self.global_stem(pixel_values)
        fused = local
        for stage in self.stages:
            local, surround, fused = stage(local, surround)
        fused = self.norm(fused)
        return BaseModelOutputWithPooling(last_hidden_state=fused, pooler_output=fused.mean((2, 3), keepdim=True))


def place_waves(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sines and cosines of each place, float32 [height * width, channels]: the first half of the row, then of the column.

    Wavelengths rise geometrically from 2 pi to 10,000 times that (Vaswani et al. 2017, section 3.5, for each axis).
    """
    rates = 10_000 ** -(torch.arange(channels // 4, device=device) / (channels // 4))
    down, across = (torch.arange(side, device=device)[:, None] * rates for side in (height, width))
    down, across = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (down, across))
    grid = [down[:, None].expand(-1, width, -1), across[None].expand(height, -1, -1)]
    return torch.cat(grid, dim=2).flatten(0, 1)


AutoConfig.register("starnet_dual_pyramid_rcf", StarNetPyramidConfig)
AutoModel.register(StarNetPyramidConfig, StarNetPyramidModel)
