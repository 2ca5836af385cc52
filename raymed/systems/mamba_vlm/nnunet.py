"""nnU-Net v2 checkpoints: read without running what is in them, their encoder's weights found, and kept as a folder of
safetensors and a plan."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raymed.errors import UserError
from raymed.storage.seal import check_archive
from raymed.systems.mamba_vlm.encoder import Encoder
from raymed.systems.mamba_vlm.plans import EncoderPlan, read_plan

WEIGHTS, PLAN = "encoder.safetensors", "encoder.json"
WRAPPERS = ("module.", "_orig_mod.")  # of data parallel training and of torch.compile
ALLOWED: list[Any] = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]


@dataclass(frozen=True)
class EncoderWeights:
    """The encoder of a checkpoint.

    Attributes:
        plan: all its stages.
        tensors: by their names in `Encoder`.
        aliases: how many keys named a tensor a second time.
        others: keys of the decoder and whatever else.
    """

    plan: EncoderPlan
    tensors: dict[str, Tensor]
    aliases: int
    others: tuple[str, ...]


@dataclass(frozen=True)
class KeyReport:
    """How a checkpoint's keys fit an encoder: the keys of each kind."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing)
        counts = f"{len(self.missing)} missing, {len(self.unexpected)} unexpected"
        return f"{len(self.matched)} of {total} weights matched, {counts}"


def read_checkpoint(path: Path, trust: bool = False) -> EncoderWeights:
    """The encoder in nnU-Net's `checkpoint_best.pth`.

    Args:
        trust: read it as the pickle that it is, which runs what it says.

    Raises:
        UserError: it is no such checkpoint, a 3-D one, or holds objects that are not on the list of allowed ones.
    """
    checkpoint = _load(path, trust)
    try:
        arguments = checkpoint["init_args"]
        plan = read_plan(arguments["plans"], arguments["configuration"], arguments["dataset_json"])
        weights: Mapping[str, Tensor] = checkpoint["network_weights"]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is not a checkpoint of nnU-Net v2: it lacks {error}") from error
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    aliases = 0
    for key, tensor in weights.items():
        name = _canonical(key)
        if name is None:
            others.append(key)
        elif name in tensors:
            aliases += 1
        else:
            tensors[name] = tensor.float()
    return EncoderWeights(plan, tensors, aliases, tuple(others))


def compare(weights: EncoderWeights, plan: EncoderPlan) -> KeyReport:
    """How the weights fit the encoder of a plan, cut or whole.

    Raises:
        UserError: none of its weights is there, or one has another shape.
    """
    with torch.device("meta"):
        wanted = Encoder(plan).state_dict()
    matched = tuple(key for key in wanted if key in weights.tensors)
    if not matched:
        raise UserError(
            f"none of the {len(wanted)} weights of the encoder is in the checkpoint, so nothing would load (it has keys "
            f"such as {', '.join([*weights.tensors, *weights.others][:3])}): it is of another trainer or network"
        )
    for key in matched:
        if weights.tensors[key].shape != wanted[key].shape:
            raise UserError(
                f"{key} has the shape {list(weights.tensors[key].shape)} in the checkpoint and {list(wanted[key].shape)} by "
                "its plans: they do not belong together"
            )
    return KeyReport(
        matched,
        tuple(key for key in wanted if key not in weights.tensors),
        tuple(key for key in weights.tensors if key not in wanted),
    )


def write_encoder(weights: EncoderWeights, folder: Path) -> KeyReport:
    """Write `encoder.safetensors` and `encoder.json`, which `load_encoder` reads.

    Raises:
        UserError: weights are missing.
    """
    report = compare(weights, weights.plan)
    if report.missing:
        raise UserError(
            f"the checkpoint lacks {len(report.missing)} weights of its encoder: {', '.join(report.missing[:5])}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: weights.tensors[key].contiguous() for key in report.matched}, folder / WEIGHTS)
    write_plan(weights.plan, folder)
    return report


def write_plan(plan: EncoderPlan, folder: Path) -> None:
    """Write `encoder.json`."""
    (folder / PLAN).write_text(json.dumps(plan.to_json(), indent=2), "utf-8")


def read_encoder_plan(folder: Path) -> EncoderPlan:
    """The plan in a folder that `write_encoder` wrote.

    Raises:
        UserError: there is none.
    """
    try:
        return EncoderPlan.from_json(json.loads((folder / PLAN).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no imported encoder ({PLAN}: {error}): "
            f"python jobs/import_nnunet.py checkpoint_best.pth --out {folder}"
        ) from error


def load_encoder(encoder: Encoder, folder: Path) -> KeyReport:
    """Load an imported encoder's weights; deeper stages than `encoder` has are left out.

    Raises:
        UserError: weights are missing or have another shape.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors has its own kinds
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    wanted = encoder.state_dict()
    missing = [key for key in wanted if key not in tensors or tensors[key].shape != wanted[key].shape]
    if missing:
        raise UserError(f"{folder / WEIGHTS} does not fit its plan: {', '.join(missing[:5])} missing or of another shape")
    encoder.load_state_dict({key: tensors[key] for key in wanted})
    return KeyReport(tuple(wanted), (), tuple(key for key in tensors if key not in wanted))


def _load(path: Path, trust: bool) -> Any:
    if not path.is_file() or not path.stat().st_size:  # an empty one is a copy that broke off
        raise UserError(f"there is no checkpoint {path}")
    check_archive(path)
    try:
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many kinds
        reason = f"{path} cannot be read ({str(error).splitlines()[0]})"
        if trust:
            raise UserError(reason) from error
        raise UserError(
            f"{reason}: only tensors and plain values are. Reading whatever else is in it would run it: do "
            "so only with a file of your own, by --trust"
        ) from error


def _canonical(key: str) -> str | None:
    """A checkpoint's key as `Encoder` calls it, or None for what is not the encoder's."""
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    key = key.removeprefix("decoder.") if key.startswith("decoder.encoder.") else key
    if not key.startswith("encoder."):
        return None
    key = key.removeprefix("encoder.")
    key = re.sub(r"\.all_modules\.0\.", ".conv.", key)
    return re.sub(r"\.all_modules\.\d+\.", ".norm.", key)
