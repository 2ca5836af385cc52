"""Image backbones by name: transformers' own, StarNet and its dual pyramid; from pictures to one feature vector each.

A backbone starts from random weights; `raymed.models.backbone_weights` puts local ones in. Nothing is downloaded and no
remote code is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    ConvNextConfig,
    EfficientNetConfig,
    InternVLVisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ViTConfig,
)

from raymed.errors import UserError
from raymed.models.efficientnet_lite import EfficientNetLiteConfig
from raymed.models.model_folders import IMAGE_PROCESSOR
from raymed.models.norm import convert_batch_norms
from raymed.models.settings import LITE
from raymed.models.starnet import StarNetConfig
from raymed.models.starnet_pyramid import StarNetPyramidConfig

TOKEN_MODELS = ("vit", "internvl_vision")
KINDS = (
    *("resnet", "convnext", "convnextv2", "efficientnet", "efficientnet_lite", "starnet", "starnet_dual_pyramid_rcf"),
    *TOKEN_MODELS,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _resnet(embedding: int, hidden: list[int], depths: list[int], layer: str = "basic") -> Callable[[int], PreTrainedConfig]:
    return lambda size: ResNetConfig(embedding_size=embedding, hidden_sizes=hidden, depths=depths, layer_type=layer)


def _convnext(width: int, depth: int) -> Callable[[int], PreTrainedConfig]:
    return lambda size: ConvNextConfig(hidden_sizes=[width * 2**stage for stage in range(4)], depths=[3, 3, depth, 3])


def _efficientnet(width: float, depth: float, features: int) -> Callable[[int], PreTrainedConfig]:
    # transformers' momentum of 0.99 follows TensorFlow's convention; torch counts the other way round
    return lambda size: EfficientNetConfig(
        width_coefficient=width, depth_coefficient=depth, hidden_dim=features, image_size=size, batch_norm_momentum=0.01
    )


def _vit(width: int, heads: int) -> Callable[[int], PreTrainedConfig]:
    return lambda size: ViTConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, image_size=size, patch_size=16
    )


def _starnet(width: int, depths: tuple[int, ...]) -> Callable[[int], PreTrainedConfig]:
    return lambda size: StarNetConfig(width=width, depths=depths)


_WIDTHS, _WIDE = [64, 128, 256, 512], [256, 512, 1024, 2048]
PRESETS: dict[str, Callable[[int], PreTrainedConfig]] = {  # name -> configuration for a size of pictures
    "tiny": _resnet(16, [16, 32, 64], [1, 1, 1]),
    "small-cnn": _resnet(32, [32, 64, 128, 256], [1, 1, 1, 1]),
    "resnet18": _resnet(64, _WIDTHS, [2, 2, 2, 2]),
    "resnet34": _resnet(64, _WIDTHS, [3, 4, 6, 3]),
    "resnet50": _resnet(64, _WIDE, [3, 4, 6, 3], "bottleneck"),
    "resnet101": _resnet(64, _WIDE, [3, 4, 23, 3], "bottleneck"),
    "resnet152": _resnet(64, _WIDE, [3, 8, 36, 3], "bottleneck"),
    "convnext-tiny": _convnext(96, 9),
    "convnext-small": _convnext(96, 27),
    "convnext-base": _convnext(128, 27),
    "convnext-large": _convnext(192, 27),
    "efficientnet-b0": _efficientnet(1.0, 1.0, 1280),
    "efficientnet-b1": _efficientnet(1.0, 1.1, 1280),
    "efficientnet-b2": _efficientnet(1.1, 1.2, 1408),
    "efficientnet-b3": _efficientnet(1.2, 1.4, 1536),
    "efficientnet-b4": _efficientnet(1.4, 1.8, 1792),
    "efficientnet-b5": _efficientnet(1.6, 2.2, 2048),
    "efficientnet-b6": _efficientnet(1.8, 2.6, 2304),
    "efficientnet-b7": _efficientnet(2.0, 3.1, 2560),
    LITE: lambda size: EfficientNetLiteConfig(),
    "starnet_s1": _starnet(24, (2, 2, 8, 3)),
    "starnet_s2": _starnet(32, (1, 2, 6, 2)),
    "starnet_s3": _starnet(32, (2, 2, 8, 4)),
    "starnet_s4": _starnet(32, (3, 3, 12, 5)),
    "starnet_dual_pyramid_rcf": lambda size: StarNetPyramidConfig(),
    "vit-small": _vit(384, 6),
    "vit": _vit(768, 12),
    "internvit-300m": lambda size: InternVLVisionConfig(attention_bias=True, image_size=size),
}


class InputNorm(nn.Module):
    """uint8 pictures [rows, 1 or 3, height, width] to normalised ones [rows, 3, height, width] of the wanted type."""

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__()
        # plain numbers, not buffers: a network cast to bf16 would round them
        self.scale = [1 / (255 * s) for s in std]
        self.shift = [-m / s for m, s in zip(mean, std, strict=True)]

    def forward(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        # filled on the device, number by number: a list that is made a tensor there waits for it
        scale, shift = (
            torch.stack([torch.full((1, 1), number, device=pixels.device) for number in numbers])
            for numbers in (self.scale, self.shift)
        )
        return torch.addcmul(shift, pixels.float(), scale).to(dtype)


def normalisation(config: PreTrainedConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that a backbone wants its pictures normalised with: its configuration's, else ImageNet's."""
    return tuple(getattr(config, "image_mean", IMAGENET_MEAN)), tuple(getattr(config, "image_std", IMAGENET_STD))


def input_norm(config: PreTrainedConfig) -> InputNorm:
    """Makes pictures into what a backbone takes."""
    return InputNorm(*normalisation(config))


def make_backbone(config: PreTrainedConfig, size: int) -> PreTrainedModel:
    """A backbone with weights drawn from torch's generator, for square pictures of `size` pixels.

    Raises:
        UserError: the picture size does not fit the backbone's patches.
    """
    check_size(config, size)
    backbone: Any = AutoModel.from_config(config)
    if config.model_type == "vit":
        backbone.pooler = None  # the head takes its place
    elif config.model_type == "efficientnet":
        _draw_weights(backbone)
    convert_batch_norms(backbone)
    return backbone


def pooled_features(backbone: PreTrainedModel, inputs: Tensor, class_token: bool = False) -> Tensor:
    """Features [rows, width] of normalised pictures [rows, 3, size, size].

    Args:
        class_token: take a ViT's class token rather than the mean of its other tokens.
    """
    kind = backbone.config.model_type
    if kind not in TOKEN_MODELS:  # convolutions are a third faster in this layout
        inputs = inputs.to(memory_format=torch.channels_last)
    output = backbone(inputs, **({"interpolate_pos_encoding": True} if kind == "vit" else {}))
    if output.pooler_output is not None:
        return output.pooler_output.flatten(1)
    if class_token and kind == "vit":
        return output.last_hidden_state[:, 0]
    return output.last_hidden_state[:, 1:].mean(1)


def feature_norm(config: PreTrainedConfig) -> nn.Module:
    """What a head puts before its linear layer: a layer norm where the backbone's tokens have none."""
    return nn.LayerNorm(feature_width(config)) if config.model_type == "internvl_vision" else nn.Identity()


def feature_width(config: PreTrainedConfig) -> int:
    """Width of the pooled features."""
    if config.model_type == "efficientnet":
        return config.hidden_dim
    widths = getattr(config, "hidden_sizes", None)
    return widths[-1] if widths else config.hidden_size


def check_size(config: PreTrainedConfig, size: int) -> None:
    """Refuse a picture size that is no multiple of the backbone's patches.

    Raises:
        UserError: names the two nearest sizes.
    """
    patch = patch_size(config)
    if size < patch or size % patch:
        lower = max(patch, size // patch * patch)
        raise UserError(
            f"pictures of {size} pixels do not fit a {config.model_type} with patches of {patch} pixels: "
            f"take {lower} or {lower + patch} pixels"
        )


def patch_size(config: PreTrainedConfig) -> int:
    """Side of a patch; 1 for convolutions."""
    patch = getattr(config, "patch_size", 1) if config.model_type in TOKEN_MODELS else 1
    return patch if isinstance(patch, int) else patch[0]


def read_config(folder: Path) -> PreTrainedConfig:
    """The backbone configuration in a local folder, with the normalisation that its image processor is told.

    Raises:
        UserError: the folder has no configuration of a known model type.
    """
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise UserError(f"{folder} has no usable config.json: {error}") from error
    if config.model_type not in KINDS:
        raise UserError(
            f"{folder}: a model of type {config.model_type!r} is not a known image backbone; there are {', '.join(KINDS)}"
        )
    processor = folder / IMAGE_PROCESSOR
    if processor.is_file() and not hasattr(config, "image_mean"):
        try:
            told = json.loads(processor.read_text("utf-8"))
            config.image_mean, config.image_std = told["image_mean"], told["image_std"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{processor} does not say how pictures are normalised: {error!r}. Correct or remove it"
            ) from error
    return config


def _draw_weights(backbone: nn.Module) -> None:
    """He initialisation. transformers draws EfficientNet's norm weights around 0, which leaves no signal to learn from."""
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
