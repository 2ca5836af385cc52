"""Image backbones of transformers with a linear head: for those with small machines.

A backbone comes from a preset (random weights) or from a local folder; nothing is downloaded and no remote code is run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
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
from transformers.utils import logging

from raymed.errors import UserError
from raymed.models import adapt
from raymed.models.norm import convert_batch_norms
from raymed.models.settings import ModelSettings

WEIGHTS = "model.safetensors"
BACKBONES = ("resnet", "convnext", "convnextv2", "efficientnet", "vit", "internvl_vision")
TOKEN_MODELS = ("vit", "internvl_vision")
_DROP_PATH_OPTION = {"convnext": "drop_path_rate", "convnextv2": "drop_path_rate", "efficientnet": "drop_connect_rate"}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _resnet(embedding: int, hidden: list[int], depths: list[int], layer: str = "basic") -> PreTrainedConfig:
    return ResNetConfig(embedding_size=embedding, hidden_sizes=hidden, depths=depths, layer_type=layer)


_WIDTHS = [64, 128, 256, 512]
PRESETS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "tiny": lambda size: _resnet(16, [16, 32, 64], [1, 1, 1]),
    "small-cnn": lambda size: _resnet(32, [32, 64, 128, 256], [1, 1, 1, 1]),
    "resnet18": lambda size: _resnet(64, _WIDTHS, [2, 2, 2, 2]),
    "resnet34": lambda size: _resnet(64, _WIDTHS, [3, 4, 6, 3]),
    "resnet50": lambda size: _resnet(64, [256, 512, 1024, 2048], [3, 4, 6, 3], "bottleneck"),
    "convnext-tiny": lambda size: ConvNextConfig(),
    # transformers' momentum of 0.99 follows TensorFlow's convention; torch counts the other way round
    "efficientnet-b0": lambda size: EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=size, batch_norm_momentum=0.01
    ),
    "vit-small": lambda size: ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=size, patch_size=16
    ),
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
        scale = torch.tensor(self.scale, device=pixels.device).view(1, 3, 1, 1)
        shift = torch.tensor(self.shift, device=pixels.device).view(1, 3, 1, 1)
        return torch.addcmul(shift, pixels.float(), scale).to(dtype)


class ImageClassifier(nn.Module):
    """A backbone, mean pooling, and a linear head over the classes.

    Attributes:
        backbone: a transformers image model.
        head: dropout and the linear layer, after a layer norm where the backbone's tokens have none.
    """

    def __init__(self, config: PreTrainedConfig, classes: int, size: int, dropout: float = 0.0) -> None:
        """
        Args:
            config: the backbone's configuration; its weights are drawn from torch's generator.
            classes: number of classes.
            size: side of the square pictures, in pixels.
            dropout: rate on the pooled features.

        Raises:
            UserError: the picture size does not fit the backbone's patches.
        """
        super().__init__()
        check_size(config, size)
        self.normalise = InputNorm()
        self.backbone: PreTrainedModel = AutoModel.from_config(config)
        pooler = getattr(self.backbone, "pooler", None)
        if pooler is not None and any(True for _ in pooler.parameters()):
            self.backbone.pooler = None  # a ViT's pooler: the head takes its place
        convert_batch_norms(self.backbone)
        width = _feature_width(config)
        norm = nn.LayerNorm(width) if config.model_type == "internvl_vision" else nn.Identity()
        self.head = nn.Sequential(norm, nn.Dropout(dropout), nn.Linear(width, classes))
        self._options: dict[str, Any] = {"interpolate_pos_encoding": True} if config.model_type == "vit" else {}

    @property
    def image_backbone(self) -> nn.Module:
        return self.backbone

    @property
    def description(self) -> dict[str, str]:
        """Facts to tag a run with."""
        return {"backbone": self.backbone.config.model_type}

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled features [rows, width] of uint8 pictures [rows, 1 or 3, size, size]."""
        inputs = self.normalise(pixels, self.head[2].weight.dtype)
        if self.backbone.config.model_type not in TOKEN_MODELS:  # convolutions are a third faster in this layout
            inputs = inputs.to(memory_format=torch.channels_last)
        output = self.backbone(inputs, **self._options)
        if output.pooler_output is not None:
            return output.pooler_output.flatten(1)
        return output.last_hidden_state[:, 1:].mean(1)  # without the class token

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` [rows, classes] of uint8 pictures [rows, 1 or 3, size, size]; `labels` are not looked at."""
        return {"logits": self.head(self.features(pixels))}

    def export(self, folder: Path) -> None:
        """Write weights and the backbone's configuration."""
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        self.backbone.config.save_pretrained(folder)

    def train(self, mode: bool = True) -> ImageClassifier:
        super().train(mode)
        if mode:
            adapt.rest_frozen(self)
        return self


def check(settings: ModelSettings, size: int) -> None:
    """Refuse settings and picture sizes that the backbone cannot take, without loading its weights.

    Raises:
        UserError: says which.
    """
    for name in ("freeze_projector", "freeze_language", "vision_lora", "language_lora"):
        if getattr(settings, name):
            raise UserError(f"model.{name} is for InternVL; {settings.origin} is an image backbone")
    config = _config(settings, size)
    if settings.attention != "auto" and config.model_type not in TOKEN_MODELS:
        raise UserError(f"model.attention has no effect on {settings.origin}, which has no attention: set it to auto")
    if settings.drop_path and config.model_type not in (*TOKEN_MODELS, *_DROP_PATH_OPTION):
        raise UserError(f"model.drop_path has no effect on {settings.origin}: set it to 0")
    check_size(config, size)


def build(settings: ModelSettings, classes: int, size: int) -> ImageClassifier:
    """The classifier with its starting weights, adapted as the settings say."""
    config = _config(settings, size)
    if config.model_type in _DROP_PATH_OPTION:
        setattr(config, _DROP_PATH_OPTION[config.model_type], settings.drop_path)
    if config.model_type in TOKEN_MODELS and settings.attention != "auto":
        config._attn_implementation = settings.attention
    module = ImageClassifier(config, classes, size, settings.dropout)
    if settings.path is not None:
        load_backbone(module, Path(settings.path))
    elif config.model_type == "efficientnet":
        _draw_weights(module.backbone)
    if settings.drop_path and config.model_type in TOKEN_MODELS:
        adapt.add_drop_path(module.backbone, settings.drop_path)
    if settings.freeze_vision:
        adapt.freeze(module.backbone, settings.trainable_blocks)
    if settings.gradient_checkpointing:
        module.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    return module


def load(folder: Path, classes: int, size: int) -> ImageClassifier:
    """The classifier that `ImageClassifier.export` wrote.

    Raises:
        UserError: the folder is not complete, or its weights do not fit.
    """
    module = ImageClassifier(read_config(folder), classes, size)
    try:
        report = module.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the weights {folder / WEIGHTS}: {error}") from error
    refuse_keys(folder, {"missing": report.missing_keys, "unexpected": report.unexpected_keys})
    return module


def check_size(config: PreTrainedConfig, size: int) -> None:
    """Refuse a picture size that is no multiple of the backbone's patches.

    Raises:
        UserError: names the two nearest sizes.
    """
    patch = _patch_size(config)
    if size < patch or size % patch:
        lower = max(patch, size // patch * patch)
        raise UserError(
            f"pictures of {size} pixels do not fit a {config.model_type} with patches of {patch} pixels: "
            f"prepare the data at {lower} or {lower + patch}"
        )


def load_backbone(module: ImageClassifier, folder: Path) -> None:
    """Put a local checkpoint's weights (safetensors, or a weights-only readable .bin) into the backbone.

    A classification head in the folder is left out: the classes are others.

    Raises:
        UserError: a key of the backbone is missing, unknown or of another shape.
    """
    logging.disable_progress_bar()
    try:
        loaded, report = AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all at once
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot load the image backbone in {folder}: {error}") from error
    heads = ("classifier", "head.", "fc.", "pooler")
    wrong = {
        "missing": [key for key in report["missing_keys"] if not key.startswith("pooler")],
        "unexpected": [key for key in report["unexpected_keys"] if not key.split("model.")[-1].startswith(heads)],
        "of another shape": [str(entry[0]) for entry in report["mismatched_keys"]],
    }
    refuse_keys(folder, wrong)
    module.backbone.load_state_dict({key: value for key, value in loaded.state_dict().items() if "pooler" not in key})


def refuse_keys(folder: Path, wrong: dict[str, list[str]]) -> None:
    """Raise a `UserError` that names up to ten keys of each kind, if there are any."""
    lines = [
        f"{len(keys)} {kind}: {', '.join(sorted(keys)[:10])}{', ...' if len(keys) > 10 else ''}"
        for kind, keys in wrong.items()
        if keys
    ]
    if lines:
        raise UserError(f"the weights in {folder} do not fit their configuration. " + "; ".join(lines))


def read_config(folder: Path) -> PreTrainedConfig:
    """The backbone configuration in a local folder.

    Raises:
        UserError: the folder has no configuration of a known model type.
    """
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no usable config.json: {error}") from error
    if config.model_type not in BACKBONES:
        raise UserError(
            f"{folder}: a model of type {config.model_type!r} is not a known image backbone; "
            f"there are {', '.join(BACKBONES)}"
        )
    return config


def _config(settings: ModelSettings, size: int) -> PreTrainedConfig:
    return PRESETS[settings.preset](size) if settings.path is None else read_config(Path(settings.path))


def _draw_weights(backbone: nn.Module) -> None:
    """He initialisation. transformers draws EfficientNet's norm weights around 0, which leaves no signal to learn from."""
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()


def _patch_size(config: PreTrainedConfig) -> int:
    patch = getattr(config, "patch_size", 1) if config.model_type in TOKEN_MODELS else 1
    return patch if isinstance(patch, int) else patch[0]


def _feature_width(config: PreTrainedConfig) -> int:
    if config.model_type == "efficientnet":
        return config.hidden_dim
    widths = getattr(config, "hidden_sizes", None)
    return widths[-1] if widths else config.hidden_size
