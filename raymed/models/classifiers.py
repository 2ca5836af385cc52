"""Networks that choose one of the declared classes for a picture, of either family, behind one call.

A network takes `pixels` uint8 [rows, 1 or 3, size, size] and optionally `labels` [rows], and returns `logits`
[rows, classes] and, where it is a language model, how many `tokens` [rows] it reads and, with labels, `language_loss`
[rows]. It has `image_backbone`, `description` (facts to tag a run with) and `export(folder)`. An ensemble also returns its
members' logits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from raymed.errors import UserError
from raymed.job.mistakes import did_you_mean
from raymed.models import backbones, internvl, internvl_config, vision
from raymed.models.model_folders import MODEL_FILES, find_model
from raymed.models.settings import ModelSettings

CONFIG = "config.json"
Family = Literal["vision", "internvl"]


def family_of(settings: ModelSettings) -> Family:
    """The model family that the settings name.

    Raises:
        UserError: the preset is unknown, or the folder has no readable config.json.
    """
    if settings.path is not None:
        return _family_of_folder(find_model(settings.path, MODEL_FILES))
    if set(settings.members) <= set(backbones.PRESETS):
        return "vision"
    if settings.preset in internvl_config.PRESETS:
        return "internvl"
    known = [*backbones.PRESETS, *internvl_config.PRESETS]
    raise UserError(
        f"model.preset {settings.preset!r} is unknown; there are {', '.join(known)}{did_you_mean(settings.preset, known)}"
    )


def check(settings: ModelSettings, codes: Sequence[str], size: int) -> None:
    """Refuse settings, choices or picture sizes that the network cannot take, without loading its weights.

    Raises:
        UserError: says which.
    """
    if family_of(settings) == "vision":
        vision.check(settings, size)
    else:
        internvl.check(settings, codes, size)


def build(settings: ModelSettings, codes: Sequence[str], size: int) -> nn.Module:
    """The network with its starting weights, adapted as the settings say.

    Raises:
        UserError: as `check`, and where weights do not fit.
    """
    check(settings, codes, size)
    if family_of(settings) == "vision":
        return vision.build(settings, len(codes), size)
    return internvl.build(settings, codes, size)


def frozen_backbone(settings: ModelSettings) -> str | None:
    """The name, within its network, of the backbone that `freeze_vision` freezes, whose `features(pixels)` [rows, ...] its
    forward pass takes in place of `pixels`; None of networks that have no such one."""
    return "backbone" if family_of(settings) == "vision" and len(settings.members) == 1 else None


def load(folder: Path, codes: Sequence[str], size: int) -> nn.Module:
    """The network that its own `export` wrote into a folder.

    Raises:
        UserError: the folder is not complete, or its weights do not fit.
    """
    if _family_of_folder(folder) == "vision":
        return vision.load(folder, len(codes), size)
    return internvl.load(folder, codes)


def _family_of_folder(folder: Path) -> Family:
    try:
        kind = json.loads((folder / CONFIG).read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder} is not a model folder: its {CONFIG} cannot be read ({error})") from error
    return "internvl" if kind in ("internvl", "internvl_chat") else "vision"
