"""Which networks a classifier uses and how they are adapted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from raymed.errors import UserError
from raymed.models.model_folders import ENCODER_FILES, MODEL_FILES, WEIGHT_FILES, find_model

Precision = Literal["auto", "fp32", "bf16", "amp"]
Layout = Literal["native", "internvl"]
CHARACTERS = "characters"  # the text encoder with random weights
LITE = "efficientnet-lite0"  # the preset with learned weights


@dataclass(frozen=True)
class ModelSettings:
    """The network. The family follows from the preset's name or the folder's config.json.

    Attributes:
        preset: random weights: `tiny`, `small-cnn`, `resnet18` to `resnet152`, `convnext-tiny` to `convnext-large`,
            `efficientnet-b0` to `efficientnet-b7`, `starnet_s1` to `starnet_s4`, `starnet_dual_pyramid_rcf`, `vit-small`,
            `vit`, `internvit-300m` (image backbones), `internvl-tiny`, `internvl-small`, `internvl2_5-1b` (InternVL); or
            `efficientnet-lite0`, an image backbone with ImageNet weights from an installed package. Image backbones joined
            by `+` are an ensemble: trained side by side, and their probabilities averaged.
        path: local folder with weights, in place of the preset: InternVL (native or original layout) or an image backbone;
            by its path, or by its name under RAYMED_MODELS.
        dropout: rate on the pooled features; image backbones only.
        drop_path: stochastic depth, rising linearly to this rate in the last block of the image backbone.
        vision_layer: which block's output of the image backbone is projected: -1 is the last's, -2 that of the one before
            (default: what the folder says, else -1); InternVL only.
        freeze_vision: keep the image backbone as it is; of an ensemble, backbones with pretrained weights.
        trainable_blocks: with `freeze_vision`, train the last so many blocks all the same.
        freeze_projector: keep the projector from pictures to language as it is; InternVL only.
        freeze_language: keep the language model as it is; InternVL only.
        vision_lora: rank of LoRA adapters in the image backbone (0 = none); InternVL only.
        language_lora: rank of LoRA adapters in the language model (0 = none); InternVL only.
        gradient_checkpointing: compute activations again in the backward pass: less memory, about a third more time.
        attention: attention kernel; `auto` takes flash-attn on a GPU where it is installed, and SDPA otherwise.
        backbone_lr_scale: learning rate of the image backbone, relative to the rest's; of an ensemble, of backbones with
            pretrained weights.
    """

    preset: str = "tiny"
    path: str | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    vision_layer: int | None = None
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

    def located(self) -> ModelSettings:
        """With the absolute path that `path` stands for: workers have another working folder.

        Raises:
            UserError: there is none.
        """
        return self if self.path is None else replace(self, path=str(find_model(self.path, MODEL_FILES)))

    @property
    def pretrained(self) -> tuple[str, ...]:
        return () if self.path is None else (self.path,)

    @property
    def members(self) -> list[str]:
        """Names of the presets: one, or those of an ensemble."""
        return self.preset.split("+") if self.path is None else [self.preset]

    @property
    def origin(self) -> str:
        """Where the weights come from, in words."""
        return self.path if self.path is not None else f"preset {self.preset}"


@dataclass(frozen=True)
class ClipModelSettings:
    """The two towers of the CLIP classifier.

    Attributes:
        image_encoder: `starnet_dual_pyramid_rcf`, `starnet_s1` to `starnet_s4`, `resnet18`, `resnet34`, `resnet50`,
            `resnet101`, `resnet152`, `vit`, `efficientnet-b0` to `efficientnet-b7`, `convnext-tiny`, `convnext-small`,
            `convnext-base`, `convnext-large`, `internvit` (which needs `image_weights`), or `tiny` for tests.
        image_weights: local weights of the image encoder in place of random ones: a folder as transformers saves it, or a
            file of timm's (.safetensors, .pth); EfficientNet's must be those that timm calls `tf_efficientnet_...`.
        text_encoder: folder of a BERT-like or CLIP text model, by its path or by its name under RAYMED_MODELS; or
            `characters`, a small network with random weights over the class texts' own characters.
        embed_dim: width of the space in which pictures and texts are compared.
        temperature: starting value of the learned temperature; it never falls below 0.01.
        freeze_image: keep the image encoder as it is, and train its projection only.
        freeze_text: keep the text encoder as it is, and train its projection only; class texts are then encoded once.
        text_lr_scale: learning rate of the text encoder, relative to the rest's.
    """

    image_encoder: str = "starnet_dual_pyramid_rcf"
    image_weights: str | None = None
    text_encoder: str = "bert-base-chinese"
    embed_dim: int = 512
    temperature: float = 0.07
    freeze_image: bool = False
    freeze_text: bool = False
    text_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise UserError(f"model.embed_dim is {self.embed_dim}: it must be at least 1")
        if not 0.01 <= self.temperature <= 10:
            raise UserError(f"model.temperature is {self.temperature}: it must be between 0.01 and 10")
        if self.text_lr_scale <= 0:
            raise UserError(f"model.text_lr_scale is {self.text_lr_scale}: it must be above 0 (model.freeze_text freezes)")

    def located(self) -> ClipModelSettings:
        """With the absolute paths that weights and text encoder stand for: workers have another working folder.

        Raises:
            UserError: there is none.
        """
        weights, text = self.image_weights, self.text_encoder
        return replace(
            self,
            image_weights=None if weights is None else str(find_model(weights, WEIGHT_FILES)),
            text_encoder=text if text == CHARACTERS else str(find_model(text, ENCODER_FILES)),
        )

    @property
    def pretrained(self) -> tuple[str, ...]:
        text = () if self.text_encoder == CHARACTERS else (self.text_encoder,)
        return text if self.image_weights is None else (self.image_weights, *text)


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
