"""One vector for a picture: the tokens of a ViT's layer, pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymed.errors import UserError
from raymed.models.backbones import input_norm
from raymed.models.internvl import attention_kernel
from raymed.models.precision import arithmetic
from raymed.models.vision_tower import VisionTower


@dataclass(frozen=True)
class FeatureSettings:
    """What a picture's features are.

    Attributes:
        layer: whose output: 0 is the embeddings, 1 the first block, -1 the last block, -2 the one before it.
        sweep: so many layers in one pass, that one and those before it, to choose among them later.
        pooling: mean of the patches' tokens, cls for the class token, or all for the mean of both.
        normalise: divide each vector by its length.
        precision: bf16 is faster where the hardware has it; features differ in their third digit.
    """

    layer: int = -1
    sweep: int = 1
    pooling: Literal["mean", "cls", "all"] = "mean"
    normalise: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"

    def layers(self, blocks: int) -> tuple[int, ...]:
        """The layers that are asked of a ViT with so many blocks, counted from the embeddings, ascending.

        Raises:
            UserError: it has no such layers.
        """
        last = self.layer if self.layer >= 0 else blocks + 1 + self.layer
        if not (0 <= last <= blocks and 1 <= self.sweep <= last + 1):
            raise UserError(
                f"features.layer {self.layer} and features.sweep {self.sweep}: the ViT has the layers 0 (its embeddings) to "
                f"{blocks}, or -{blocks + 1} to -1"
            )
        return tuple(range(last - self.sweep + 1, last + 1))


class FeatureExtractor(nn.Module):
    """A ViT, cut off behind the last layer that is asked for, and the pooling of its layers.

    Attributes:
        layers: whose features come out, counted from the embeddings, ascending.
        width: of a feature vector.
    """

    def __init__(self, tower: VisionTower, settings: FeatureSettings) -> None:
        """
        Args:
            tower: the ViT, resized for the pictures that are asked about.

        Raises:
            UserError: the ViT has no such layers.
        """
        super().__init__()
        self.settings = settings
        self.layers = settings.layers(tower.layers)
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        attention = attention_kernel("auto") if settings.precision == "bf16" else "sdpa"  # flash-attn takes 16 bits only
        network: Any = tower.build(self.dtype, attention)
        self.config = network.config
        self.width: int = network.config.hidden_size
        self.normalise = input_norm(network.config)
        self.embeddings = network.embeddings
        blocks: nn.ModuleList = network.encoder.layer if hasattr(network, "encoder") else network.layers
        self.blocks = blocks[: self.layers[-1]]
        whole = self.layers[-1] == tower.layers
        self.norm = network.layernorm if whole else nn.Identity()  # behind the last block; InternViTs have none

    def on(self, device: torch.device) -> FeatureExtractor:
        """This one, moved to a device, and in float32 where the device has no instructions for bf16."""
        if self.dtype == torch.bfloat16 and arithmetic("bf16", device) == "fp32":
            self.dtype = torch.float32
            self.float()
            self.config._attn_implementation = "sdpa"
        return self.to(device)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 [layers, rows, width] of uint8 pictures [rows, 1 or 3, size, size]."""
        hidden = self.embeddings(self.normalise(pixels, self.dtype))
        found: list[Tensor] = [self._pooled(hidden)] if self.layers[0] == 0 else []
        for number, block in enumerate(self.blocks, 1):
            hidden = block(hidden)
            if number in self.layers:
                found.append(self._pooled(self.norm(hidden) if number == len(self.blocks) else hidden))
        return torch.stack(found)

    def _pooled(self, hidden: Tensor) -> Tensor:
        tokens = {"mean": hidden[:, 1:], "cls": hidden[:, :1], "all": hidden}[self.settings.pooling]
        pooled = tokens.float().mean(1)
        return F.normalize(pooled, dim=1) if self.settings.normalise else pooled
