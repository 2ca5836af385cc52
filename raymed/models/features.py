"""One vector for a picture: the tokens of a ViT's layer, pooled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymed.models.backbones import input_norm
from raymed.models.internvl import attention_kernel
from raymed.models.precision import arithmetic
from raymed.models.settings import FeatureSettings
from raymed.models.vision_tower import VisionTower


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
