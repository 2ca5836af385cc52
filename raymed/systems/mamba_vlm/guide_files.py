"""The checkpoint files that the guide names: encoder, bridge and interaction in one `.pt`, read as weights only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raymed.errors import UserError
from raymed.storage import disk
from raymed.storage.seal import check_archive
from raymed.systems.mamba_vlm.nnunet import KeyReport
from raymed.training.state import StartMoments

INTERACTION = "cmi_connector."
PARTS = ("encoder.", "bridge.", INTERACTION)  # what such a file holds
OPTIMIZER = "optimizer_state_dict"  # AdamW's moments by parameter name, and its steps, in a file that training continues
LANGUAGE = "language_model."  # what it holds besides where that is trained
_UNITS = {"0": "convs.0.conv", "1": "convs.0.norm", "3": "convs.1.conv", "4": "convs.1.norm"}  # of older encoders' stages


@dataclass(frozen=True)
class GuideCheckpoint:
    """One such file.

    Attributes:
        weights: by the names of this system's networks.
        values: what else it says: step, val_loss, settings.
    """

    weights: dict[str, Tensor]
    values: dict[str, Any]


def write_checkpoint(path: Path, state: Mapping[str, Tensor], step: int, language: bool = False, **values: Any) -> None:
    """Write the encoder, bridge and interaction among a network's weights as `{step, model_state_dict, **values}`; whole or
    not at all.

    Args:
        language: the language model's weights too, which are trained; its adapters are always written.
    """
    weights = {
        key: tensor.detach().float().cpu()
        for key, tensor in state.items()
        if key.startswith(PARTS) or (key.startswith(LANGUAGE) and (language or ".lora_" in key))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    torch.save({"step": step, "model_state_dict": weights, **values}, partial)
    disk.keep(partial)
    partial.replace(path)


def read_checkpoint(path: Path) -> GuideCheckpoint:
    """A file of `write_checkpoint`, or one that the guide's own scripts wrote.

    Raises:
        UserError: there is none, it is damaged, it holds more than tensors and plain values, or an MLP was trained in place
            of Mamba.
    """
    if not path.is_file() or not path.stat().st_size:  # an empty one is a copy that broke off
        raise UserError(f"there is no checkpoint {path}")
    check_archive(path)
    try:
        values: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"{path} is not a checkpoint with nothing but tensors and plain values: {error}") from error
    weights = values.pop("model_state_dict", None) if isinstance(values, dict) else None
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path} is not a checkpoint of vision and bridge: it holds no model_state_dict")
    if substitutes := [key for key in weights if re.fullmatch(r"bridge\.vim_(fwd|bwd)\.mamba\.[02]\.(weight|bias)", key)]:
        raise UserError(
            f"{path} was trained with an MLP in place of Mamba ({substitutes[0]}), because mamba-ssm was missing: there is "
            "no such bridge here. Train stage 1 again"
        )
    return GuideCheckpoint({_renamed(key): tensor for key, tensor in weights.items()}, values)


def moments_of(checkpoint: GuideCheckpoint) -> StartMoments | None:
    """What the optimizer goes on from; None where the file has nothing, or torch's own state, which knows no names."""
    moments = checkpoint.values.get(OPTIMIZER)
    if isinstance(moments, Mapping) and moments.keys() == {each.name for each in fields(StartMoments)}:
        return StartMoments(**moments)
    return None


def load_into(module: nn.Module, checkpoint: GuideCheckpoint, path: Path) -> KeyReport:
    """Load a checkpoint's weights; only an interaction that it lacks may be missing, and keeps its random weights. Those of
    a language model that it holds are loaded too; stages of an encoder that is deeper are left out.

    Raises:
        UserError: as `compare`.
    """
    report = compare(module, checkpoint, path)
    module.load_state_dict({key: checkpoint.weights[key] for key in report.matched}, strict=False)
    return report


def compare(module: nn.Module, checkpoint: GuideCheckpoint, path: Path) -> KeyReport:
    """How a checkpoint's weights fit a network.

    Raises:
        UserError: weights other than an interaction's are missing, unknown or of another shape.
    """
    expected = {
        key: tensor
        for key, tensor in module.state_dict().items()
        if key.startswith(PARTS) or (key.startswith(LANGUAGE) and key in checkpoint.weights)
    }
    stages = {_stage(key) for key in expected}
    matched = tuple(key for key in checkpoint.weights if key in expected)
    missing = tuple(key for key in expected if key not in checkpoint.weights)
    unexpected = tuple(key for key in checkpoint.weights if key not in expected)
    wrong = {
        "missing": [key for key in missing if not key.startswith(INTERACTION)],
        "unknown": [key for key in unexpected if not key.startswith(INTERACTION) and _stage(key) <= max(stages)],
        "of another shape": [key for key in matched if checkpoint.weights[key].shape != expected[key].shape],
    }
    if any(wrong.values()):
        words = "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in wrong.items() if keys)
        raise UserError(
            f"{path} does not fit this network: {words}. Its encoder, bridge or language model has another shape: give the "
            "settings it was trained with, or train with --from_scratch"
        )
    return KeyReport(matched, missing, unexpected)


def _stage(key: str) -> int:
    """Of the encoder, which a key belongs to; -1 of other keys."""
    match = re.match(r"encoder\.stages\.(\d+)\.", key)
    return int(match[1]) if match else -1


def _renamed(key: str) -> str:
    match = re.fullmatch(r"encoder\.stages\.(\d+)\.([0134])\.(weight|bias)", key)
    return key if match is None else f"encoder.stages.{match[1]}.0.{_UNITS[match[2]]}.{match[3]}"
