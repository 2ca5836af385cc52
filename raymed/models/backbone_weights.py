"""Local weights of image backbones, read safely and whole: transformers' folders, and files with timm's names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers.utils.logging
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from raymed.errors import UserError
from raymed.models import timm_weights
from raymed.storage.seal import check_archive, check_seal

log = logging.getLogger("raymed")

POSITIONS = "embeddings.position_embeddings"  # of a ViT


def load_weights(backbone: PreTrainedModel, path: Path) -> None:
    """Put local weights into a backbone: a folder of transformers' (safetensors, or a weights-only readable .bin), or a file
    of timm's. A classification head among them is left out: the classes are others.

    Raises:
        UserError: a file is damaged, or a key of the backbone is missing, unknown or of another shape.
    """
    if path.is_dir():
        check_seal(path)
        _load_folder(backbone, path)
    else:
        _load_timm(backbone, path)


def refuse_keys(where: Path, wrong: Mapping[str, Iterable[str]]) -> None:
    """Raise a `UserError` that names up to ten keys of each kind, if there are any."""
    lines = [
        f"{len(keys)} {kind}: {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}"
        for kind, keys in ((kind, sorted(found)) for kind, found in wrong.items())
        if keys
    ]
    if lines:
        raise UserError(f"the weights in {where} do not fit their configuration. " + "; ".join(lines))


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file: safetensors, or a pickle that holds nothing but tensors, perhaps under `state_dict`.

    Raises:
        UserError: the file is damaged or cannot be read safely, or holds something else.
    """
    check_archive(file)
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"cannot read the weights {file} safely: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} is not a file of weights: tensors by name, or those under `state_dict`")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _load_folder(backbone: PreTrainedModel, folder: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    try:
        loaded, report = AutoModel.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all at once
        )
    except Exception as error:  # files of weights that are damaged, or hold something else, raise many kinds
        raise UserError(f"cannot load the image backbone in {folder}: {error}") from error
    heads = ("classifier", "head.", "fc.", "pooler")
    wrong = {
        "missing": [key for key in report["missing_keys"] if not key.startswith("pooler")],
        "unexpected": [key for key in report["unexpected_keys"] if not key.split("model.")[-1].startswith(heads)],
        "of another shape": [str(entry[0]) for entry in report["mismatched_keys"]],
    }
    refuse_keys(folder, wrong)
    state = {key: value for key, value in loaded.state_dict().items() if "pooler" not in key}
    backbone.load_state_dict(state)
    log.info("image backbone: all %d weights of %s taken", len(state), folder)


def _load_timm(backbone: PreTrainedModel, file: Path) -> None:
    kind, state = backbone.config.model_type, read_weights(file)
    renamed, heads = timm_weights.native_state(kind, state)
    expected = {key: value.shape for key, value in backbone.state_dict().items()}
    positions = renamed.get(POSITIONS)
    if kind == "vit" and positions is not None and positions.shape != expected[POSITIONS]:
        renamed[POSITIONS] = resample_positions(positions, expected[POSITIONS][1] - 1)
    refuse_keys(
        file,
        {
            "missing": {key for key in expected if not key.endswith("num_batches_tracked")} - renamed.keys(),
            "unexpected": renamed.keys() - expected.keys(),
            "of another shape": [key for key in renamed.keys() & expected.keys() if renamed[key].shape != expected[key]],
        },
    )
    backbone.load_state_dict(renamed, strict=False)  # older files do not count batches
    log.info("image backbone: %d weights of %s taken; left out: %s", len(renamed), file, ", ".join(heads) or "none")


def resample_positions(positions: Tensor, places: int) -> Tensor:
    """A ViT's position embeddings [1, 1 + n * n, width], class token first, for a square of so many places."""
    grid = positions[:, 1:].unflatten(1, (round((positions.shape[1] - 1) ** 0.5), -1)).permute(0, 3, 1, 2)
    side = round(places**0.5)
    resampled = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1)
