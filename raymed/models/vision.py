"""An image backbone with a linear head, or an ensemble of them: for those with small machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from raymed.errors import UserError
from raymed.models import adapt
from raymed.models.backbone_weights import load_weights, refuse_keys
from raymed.models.backbones import (
    PRESETS,
    TOKEN_MODELS,
    check_size,
    feature_norm,
    feature_width,
    input_norm,
    make_backbone,
    pooled_features,
    read_config,
)
from raymed.models.efficientnet_lite import installed_weights
from raymed.models.ensemble import Ensemble, member_folders
from raymed.models.model_folders import MODEL_FILES, find_model
from raymed.models.settings import LITE, ModelSettings

WEIGHTS = "model.safetensors"
_DROP_PATH_OPTION = {  # kind of backbone -> its setting of stochastic depth
    "convnext": "drop_path_rate",
    "convnextv2": "drop_path_rate",
    "efficientnet": "drop_connect_rate",
    "efficientnet_lite": "drop_path_rate",
    "starnet": "drop_path_rate",
    "starnet_dual_pyramid_rcf": "drop_path_rate",
}


class ImageClassifier(nn.Module):
    """A backbone, mean pooling, and a linear head over the classes.

    Attributes:
        backbone: a transformers image model.
        head: dropout and the linear layer, after a layer norm where the backbone's tokens have none.
        pretrained: whether the backbone started from pretrained weights.
    """

    pretrained: bool = False

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
        self.normalise = input_norm(config)
        self.backbone = make_backbone(config, size)
        self.head = nn.Sequential(feature_norm(config), nn.Dropout(dropout), nn.Linear(feature_width(config), classes))

    @property
    def image_backbone(self) -> nn.Module:
        return self.backbone

    @property
    def description(self) -> dict[str, str]:
        """Facts to tag a run with."""
        return {"backbone": self.backbone.config.model_type}

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled features [rows, width] of uint8 pictures [rows, 1 or 3, size, size]."""
        return pooled_features(self.backbone, self.normalise(pixels, self.head[2].weight.dtype))

    def forward(
        self, pixels: Tensor | None = None, labels: Tensor | None = None, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`logits` [rows, classes] of uint8 pictures [rows, 1 or 3, size, size], or of their `features` [rows, width];
        `labels` are not looked at."""
        if features is None:
            assert pixels is not None
            features = self.features(pixels)
        return {"logits": self.head(features.to(self.head[2].weight.dtype))}  # type: ignore[arg-type]

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
    """Refuse settings and picture sizes that a backbone cannot take, without loading its weights.

    Raises:
        UserError: says which.
    """
    for name in ("vision_layer", "freeze_projector", "freeze_language", "vision_lora", "language_lora"):
        if getattr(settings, name):
            raise UserError(f"model.{name} is for InternVL; {settings.origin} is an image backbone")
    for member in _members(settings):
        _check_member(member, size)


def _check_member(settings: ModelSettings, size: int) -> None:
    config = _config(settings, size)
    if settings.attention != "auto" and config.model_type not in TOKEN_MODELS:
        raise UserError(f"model.attention has no effect on {settings.origin}, which has no attention: set it to auto")
    if settings.drop_path and config.model_type not in (*TOKEN_MODELS, *_DROP_PATH_OPTION):
        raise UserError(f"model.drop_path has no effect on {settings.origin}: set it to 0")
    check_size(config, size)
    _given_weights(settings)


def build(settings: ModelSettings, classes: int, size: int) -> nn.Module:
    """The classifier, or the ensemble, with its starting weights, adapted as the settings say."""
    members = [_build_member(member, classes, size) for member in _members(settings)]
    return members[0] if len(members) == 1 else Ensemble(members)


def _build_member(settings: ModelSettings, classes: int, size: int) -> ImageClassifier:
    config, weights = _config(settings, size), _given_weights(settings)
    if config.model_type in _DROP_PATH_OPTION:
        setattr(config, _DROP_PATH_OPTION[config.model_type], settings.drop_path)
    if config.model_type in TOKEN_MODELS and settings.attention != "auto":
        config._attn_implementation = settings.attention
    module = ImageClassifier(config, classes, size, settings.dropout)
    if weights is not None:
        load_weights(module.backbone, weights)
        module.pretrained = True
    if settings.drop_path and config.model_type in TOKEN_MODELS:
        adapt.add_drop_path(module.backbone, settings.drop_path)
    if settings.freeze_vision:
        adapt.freeze(module.backbone, settings.trainable_blocks)
    if settings.gradient_checkpointing:
        module.backbone.activation_checkpointing_enable({"use_reentrant": False})
    return module


def load(folder: Path, classes: int, size: int) -> nn.Module:
    """The classifier or the ensemble that `export` wrote.

    Raises:
        UserError: the folder is not complete, or its weights do not fit.
    """
    if members := member_folders(folder):
        return Ensemble([_load_member(member, classes, size) for member in members])
    return _load_member(folder, classes, size)


def _load_member(folder: Path, classes: int, size: int) -> ImageClassifier:
    module = ImageClassifier(read_config(folder), classes, size)
    try:
        report = module.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the weights {folder / WEIGHTS}: {error}") from error
    refuse_keys(folder, {"missing": report.missing_keys, "unexpected": report.unexpected_keys})
    return module


def _members(settings: ModelSettings) -> list[ModelSettings]:
    """The settings of each network; of an ensemble, only members with pretrained weights are frozen."""
    members = [replace(settings, preset=name) for name in settings.members]
    if len(members) == 1:
        return members
    return [
        member if _given_weights(member) else replace(member, freeze_vision=False, trainable_blocks=0) for member in members
    ]


def _given_weights(settings: ModelSettings) -> Path | None:
    """Where the starting weights of a backbone lie; None where they are drawn."""
    if settings.path is not None:
        return find_model(settings.path, MODEL_FILES)
    return installed_weights() if settings.preset == LITE else None


def _config(settings: ModelSettings, size: int) -> PreTrainedConfig:
    return PRESETS[settings.preset](size) if settings.path is None else read_config(find_model(settings.path, MODEL_FILES))
