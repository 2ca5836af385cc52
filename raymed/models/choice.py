"""Networks that choose one of the declared classes for a picture, of either family, behind one call.

A network takes `pixels` uint8 [rows, 1 or 3, size, size] and optionally `labels` [rows], and returns `logits`
[rows, classes] and, where it is a language model and has labels, `language_loss` [rows].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from raymed.errors import UserError
from raymed.models import adapt, vision
from raymed.models.settings import ModelSettings

CONFIG = "config.json"
Family = Literal["vision", "internvl"]


def family_of(settings: ModelSettings) -> Family:
    """The model family that the settings name.

    Raises:
        UserError: the preset is unknown, or the folder has no readable config.json.
    """
    if settings.path is None:
        if settings.preset in vision.PRESETS:
            return "vision"
        raise UserError(f"model.preset {settings.preset!r} is unknown; there are {', '.join(vision.PRESETS)}")
    return family_of_folder(Path(settings.path))


def family_of_folder(folder: Path) -> Family:
    """The family of the model in a folder, by the model_type of its config.json."""
    try:
        kind = json.loads((folder / CONFIG).read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder} is not a model folder: its {CONFIG} cannot be read ({error})") from error
    return "internvl" if kind in ("internvl", "internvl_chat") else "vision"


def check(settings: ModelSettings, codes: Sequence[str], size: int) -> None:
    """Refuse settings, choices or picture sizes that the network cannot take, without building it.

    Raises:
        UserError: says which.
    """
    if family_of(settings) == "vision":
        _refuse_internvl_settings(settings)
        vision.check_size(_vision_config(settings, size), size)


def build(settings: ModelSettings, codes: Sequence[str], size: int) -> nn.Module:
    """The network with its starting weights, adapted as the settings say."""
    check(settings, codes, size)
    return _build_vision(settings, len(codes), size)


def open_exported(folder: Path, codes: Sequence[str], size: int) -> nn.Module:
    """The network that an exported folder describes, with weights that are still to be loaded."""
    return vision.ImageClassifier(vision.read_config(folder), len(codes), size)


def _vision_config(settings: ModelSettings, size: int) -> vision.PreTrainedConfig:
    return vision.preset_config(settings.preset, size) if settings.path is None else vision.read_config(Path(settings.path))


def _build_vision(settings: ModelSettings, classes: int, size: int) -> nn.Module:
    config = _vision_config(settings, size)
    module = vision.ImageClassifier(config, classes, size, settings.dropout)
    if settings.path is not None:
        vision.load_backbone(module, Path(settings.path))
    if settings.drop_path:
        adapt.add_drop_path(module.backbone, settings.drop_path)
    if settings.freeze_vision:
        adapt.freeze(module.backbone, settings.trainable_blocks)
    if settings.gradient_checkpointing:
        module.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    return module


def _refuse_internvl_settings(settings: ModelSettings) -> None:
    for name in ("freeze_projector", "freeze_language", "vision_lora", "language_lora"):
        if getattr(settings, name):
            raise UserError(f"model.{name} is for InternVL; {settings.origin} is an image backbone")
