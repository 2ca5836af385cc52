"""Where local models lie: nothing is downloaded, so a model's name is looked up among folders on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raymed.errors import UserError
from raymed.job.mistakes import did_you_mean
from raymed.job.submitted import where_it_looks

IMAGE_PROCESSOR = "preprocessor_config.json"  # how pictures are brought to what a network takes
MODEL_FILES = "config.json and the weights"  # of a network's folder
WEIGHT_FILES = "config.json and model.safetensors, or one file of timm's weights"  # of an image encoder
ENCODER_FILES = (  # of a text encoder's folder
    "config.json, model.safetensors or pytorch_model.bin, and the tokenizer's: tokenizer.json or vocab.txt"
)
VARIABLE = "RAYMED_MODELS"  # one folder or several, separated as in PATH


def find_model(name: str, files: str) -> Path:
    """The absolute path of a model's folder (or file), by its path or by its name under one of the folders in RAYMED_MODELS.

    Args:
        name: a path, or a name such as ``bert-base-chinese`` or ``google-bert/bert-base-chinese``.
        files: what such a folder holds, for the error.

    Raises:
        UserError: there is none; says what to put where.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path.absolute()
    roots = [Path(root).expanduser() for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]
    for root in roots:
        for candidate in (root / name, root / path.name):
            if candidate.exists():
                return candidate.absolute()
    names = [folder.name for root in roots if root.is_dir() for folder in root.iterdir()]
    searched = f"nor under {', '.join(map(str, roots))} ({VARIABLE})" if roots else f"and {VARIABLE} is not set"
    raise UserError(
        f"there is no model {name!r}: no such path, {searched}{did_you_mean(path.name, names)}. Nothing is downloaded: put "
        f"its files ({files}) into a folder {path.name} and give its path, or name the folder above it in {VARIABLE}"
        f"{_how_to_get(name)}{where_it_looks()}"
    )


def _how_to_get(name: str) -> str:
    """The command that fetches a published model, where `name` can be one's."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name):
        return ""
    return (
        f". If it is a published one, get it on a machine with internet: hf download {name} --local-dir {Path(name).name} "
        "(HF_ENDPOINT=https://hf-mirror.com before it where huggingface.co cannot be reached)"
    )
