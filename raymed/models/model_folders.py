"""Where local models lie: nothing is downloaded, so a model's name is looked up among folders on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from raymed.errors import UserError

IMAGE_PROCESSOR = "preprocessor_config.json"  # how pictures are brought to what a network takes
MODEL_FILES = "config.json and the weights"  # of a network's folder
VARIABLE = "RAYMED_MODELS"  # one folder or several, separated as in PATH


def find_model(name: str, files: str) -> Path:
    """The folder (or file) of a model, by its path or by its name under one of the folders in RAYMED_MODELS.

    Args:
        name: a path, or a name such as ``bert-base-chinese`` or ``google-bert/bert-base-chinese``.
        files: what such a folder holds, for the error.

    Raises:
        UserError: there is none; says what to put where.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    roots = [Path(root).expanduser() for root in os.environ.get(VARIABLE, "").split(os.pathsep) if root]
    for root in roots:
        for candidate in (root / name, root / path.name):
            if candidate.exists():
                return candidate
    searched = f"nor under {', '.join(map(str, roots))} ({VARIABLE})" if roots else f"and {VARIABLE} is not set"
    raise UserError(
        f"there is no model {name!r}: no such path, {searched}. Nothing is downloaded: put its files ({files}) into a "
        f"folder {path.name} and give that folder's path, or name the folder above it in {VARIABLE}"
    )
