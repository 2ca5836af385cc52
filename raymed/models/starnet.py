"""StarNet: small convolution networks whose blocks multiply two branches (Ma et al. 2024, arXiv:2403.19967)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPooling

from raymed.models.adapt import DropPath

STEM = 32  # channels after the first convolution, of every variant


class StarNetConfig(PreTrainedConfig):
    """Shape of a StarNet; the defaults are those of `starnet_s1`.

    Attributes:
        width: channels of the first stage; each stage has twice those of the one before.
        depths: blocks per stage.
        ratio: channels of a block's branches, relative to its own.
        drop_path_rate: stochastic depth, rising linearly to this rate in the last block.
    """

    model_type = "starnet"

    width: int = 24
    depths: Sequence[int] = (2, 2, 8, 3)
    ratio: int = 4
    drop_path_rate: float = 0.0

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [self.width * 2**stage for stage in range(len(self.depths))]


class ConvNorm(nn.Module):
    """A convolution and batch normalisation; the output has the input's size divided by the stride, rounded up."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, inputs, height, width]."""
        return self.norm(self.conv(x))


class StarBlock(nn.Module):
    """Depthwise 7x7, two 1x1 branches of which one is activated, their product, 1x1 back, depthwise 7x7; with a residual."""

    def __init__(self, channels: int, ratio: int, drop_path: float, activation: nn.Module) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels, channels, 7, groups=channels)
        self.gate = nn.Conv2d(channels, ratio * channels, 1)
        self.value = nn.Conv2d(channels, ratio * channels, 1)
        self.project = ConvNorm(ratio * channels, channels, 1)
        self.mix = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.activation = activation
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, channels, height, width]."""
        y = self.depthwise(x)
        y = self.activation(self.gate(y)) * self.value(y)
        return x + self.drop_path(self.mix(self.project(y)))


class StarStage(nn.Module):
    """A 3x3 convolution of stride 2, and star blocks."""

    def __init__(self, inputs: int, channels: int, ratio: int, rates: Sequence[float], activation: type[nn.Module]) -> None:
        super().__init__()
        self.downsample = ConvNorm(inputs, channels, 3, stride=2)
        self.blocks = nn.ModuleList(StarBlock(channels, ratio, rate, activation()) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, inputs, height, width] to [rows, channels, height / 2, width / 2]."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates rising linearly from 0 in the first block to `last`, stage by stage."""
    rates = iter(torch.linspace(0, last, sum(depths), device="cpu").tolist())
    return [list(itertools.islice(rates, depth)) for depth in depths]


class StarNetPreTrainedModel(PreTrainedModel):
    """How the weights of StarNets are drawn."""

    config_class = StarNetConfig
    base_model_prefix = "starnet"
    main_input_name = "pixel_values"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            initialization.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                initialization.zeros_(module.bias)


class StarNetModel(StarNetPreTrainedModel):
    """The backbone without a classification layer: total stride 32."""

    def __init__(self, config: StarNetConfig) -> None:
        super().__init__(config)
        self.stem = ConvNorm(3, STEM, 3, stride=2)
        self.activation = nn.ReLU6()
        rates, sizes = drop_path_rates(config.drop_path_rate, config.depths), config.hidden_sizes
        self.stages = nn.ModuleList(
            StarStage(inputs, channels, config.ratio, rate, nn.ReLU6)
            for inputs, channels, rate in zip([STEM, *sizes[:-1]], sizes, rates, strict=True)
        )
        self.norm = nn.BatchNorm2d(sizes[-1])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Features of normalised pictures [rows, 3, height, width]: a map of stride 32 and its mean."""
        x = self.activation(self.stem(pixel_values))
        for stage in self.stages:
            x = stage(x)
        x = self.norm(x)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=x.mean((2, 3), keepdim=True))


AutoConfig.register("starnet", StarNetConfig)
AutoModel.register(StarNetConfig, StarNetModel)
