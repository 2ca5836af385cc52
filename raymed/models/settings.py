"""Which network a classifier uses and how it is adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymed.errors import UserError


@dataclass(frozen=True)
class ModelSettings:
    """The network. The family follows from the preset's name or the folder's config.json.

    Attributes:
        preset: random weights: `tiny`, `small-cnn`, `resnet18`, `resnet34`, `resnet50`, `convnext-tiny`, `efficientnet-b0`,
            `vit-small`, `internvit-300m` (image backbones), `internvl-tiny`, `internvl2_5-1b` (InternVL).
        path: local folder with weights, in place of the preset: InternVL (native or original layout) or an image backbone.
        dropout: rate on the pooled features; image backbones only.
        drop_path: stochastic depth, rising linearly to this rate in the last block of the image backbone.
        freeze_vision: keep the image backbone as it is.
        trainable_blocks: with `freeze_vision`, train the last so many blocks all the same.
        freeze_projector: keep the projector from pictures to language as it is; InternVL only.
        freeze_language: keep the language model as it is; InternVL only.
        vision_lora: rank of LoRA adapters in the image backbone (0 = none); InternVL only.
        language_lora: rank of LoRA adapters in the language model (0 = none); InternVL only.
        gradient_checkpointing: compute activations again in the backward pass: less memory, about a third more time.
        attention: attention kernel; `auto` takes flash-attn on a GPU where it is installed, and SDPA otherwise.
        backbone_lr_scale: learning rate of the image backbone, relative to the rest's.
    """

    preset: str = "tiny"
    path: str | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    freeze_vision: bool = False
    trainable_blocks: int = 0
    freeze_projector: bool = False
    freeze_language: bool = False
    vision_lora: int = 0
    language_lora: int = 0
    gradient_checkpointing: bool = False
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    backbone_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if min(self.trainable_blocks, self.vision_lora, self.language_lora) < 0 or self.backbone_lr_scale <= 0:
            raise UserError("model.trainable_blocks and LoRA ranks cannot be negative; model.backbone_lr_scale is above 0")
        if self.trainable_blocks and not self.freeze_vision:
            raise UserError("model.trainable_blocks says what to train of a frozen backbone: set model.freeze_vision too")
        if self.vision_lora and self.freeze_vision:
            raise UserError("model.vision_lora trains adapters in the image backbone; it cannot go with model.freeze_vision")
        if self.language_lora and self.freeze_language:
            raise UserError(
                "model.language_lora trains adapters in the language model; it cannot go with model.freeze_language"
            )
        if self.drop_path and self.freeze_vision and not self.trainable_blocks:
            raise UserError("model.drop_path has no effect on a frozen image backbone: set it to 0")

    @property
    def origin(self) -> str:
        """Where the weights come from, in words."""
        return self.path if self.path is not None else f"preset {self.preset}"
