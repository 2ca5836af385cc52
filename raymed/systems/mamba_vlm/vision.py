"""From pictures to visual tokens: encoder, region, pooling, bridge, cap."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymed.systems.mamba_vlm.bridge import build_bridge
from raymed.systems.mamba_vlm.encoder import Encoder
from raymed.systems.mamba_vlm.nnunet import load_encoder, read_encoder_plan
from raymed.systems.mamba_vlm.plans import EncoderPlan
from raymed.systems.mamba_vlm.settings import BridgeSettings, VisionSettings
from raymed.systems.mamba_vlm.tokens import cap_tokens, crop, pool, region_corners, sequence

_STRIDES = {"nnunet": ((1, 1), *[(2, 2)] * 7), "tiny": ((1, 1), *[(2, 2)] * 4)}
_FEATURES = {"nnunet": (32, 64, 128, 256, 512, 512, 512, 512), "tiny": (8, 16, 32, 64, 64)}


def encoder_plan(settings: VisionSettings) -> EncoderPlan:
    """The encoder's layers up to the stage whose map is used.

    Raises:
        UserError: the folder holds no imported encoder, or it has no such stage.
    """
    if settings.encoder is not None:
        return read_encoder_plan(Path(settings.encoder)).cut(settings.output_stage)
    features = _FEATURES[settings.preset]
    stages = len(features)
    plan = EncoderPlan("plain", features, _STRIDES[settings.preset], ((3, 3),) * stages, (2,) * stages)
    return plan.cut(settings.output_stage)


class VisionBridge(nn.Module):
    """The part that is trained: encoder and bridge.

    Args:
        plan: of the encoder, cut at the stage whose map is used.
        width: of the language model.
    """

    def __init__(self, plan: EncoderPlan, vision: VisionSettings, bridge: BridgeSettings, width: int) -> None:
        super().__init__()
        self.vision, self.cap = vision, bridge.max_visual_tokens
        self.encoder = Encoder(plan)
        self.bridge = build_bridge(bridge.kind, plan.features[-1], width, bridge.merge)
        if vision.encoder is not None:
            load_encoder(self.encoder, Path(vision.encoder))
        if vision.freeze:
            self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.vision.freeze:
            self.encoder.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """What encoder and bridge compute in."""
        return next(self.parameters()).dtype

    def features(self, pictures: Tensor) -> Tensor:
        """The encoder's map of each picture, brought to the target side.

        Args:
            pictures: [batch, slices, 1, height, width].

        Returns:
            [batch, slices, channels, side, side].
        """
        side = self.vision.target_side
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision.freeze):
            maps = self.encoder(pictures.flatten(0, 1).to(self.dtype))
            if maps.shape[2:] != (side, side):
                maps = F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
        return maps.unflatten(0, pictures.shape[:2])

    def region(self, maps: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        """The part of `maps` [batch, slices, any, side, side] that is used: the region in `features`, pooled."""
        flat = maps.flatten(0, 1)
        if self.vision.roi_side:
            mask = None if mask is None else mask.flatten(0, 1)
            corners = region_corners(features.flatten(0, 1), self.vision.roi_side, self.vision.roi_mode, mask)
            flat = crop(flat, corners, self.vision.roi_side)
        if self.vision.pool_side:
            flat = pool(flat, self.vision.pool_side)
        return flat.unflatten(0, maps.shape[:2])

    def bridged(self, features: Tensor) -> Tensor:
        """A region's map [batch, slices, channels, rows, columns] -> tokens [batch, slices * rows * columns, width]."""
        return self.bridge(sequence(features.transpose(1, 2).flatten(2, 3)))

    def tokens(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens of the region of maps from `features`, [batch, slices * rows * columns, width]."""
        return self.bridged(self.region(features, features, mask))

    def visual_tokens(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """The tokens that the language model reads, of maps from `features`.

        Args:
            features: [batch, slices, channels, side, side].
            mask: [batch, slices, 1, height, width], where the region lies around it.

        Returns:
            [batch, tokens, width]; of several slices, each has its share of the cap.
        """
        tokens = self.tokens(features, mask)
        batch, slices = features.shape[:2]
        each = cap_tokens(tokens.unflatten(1, (slices, -1)).flatten(0, 1), max(1, self.cap // slices))
        return each.unflatten(0, (batch, slices)).flatten(1, 2)
