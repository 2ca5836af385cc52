"""Which checkpoint file stage 2 begins with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from raymed.errors import UserError
from raymed.systems.mamba_vlm.file_names import STAGE_1_BEST, STAGE_1_FINAL, STAGE_2_CONFIG, STAGE_2_FINAL
from raymed.systems.mamba_vlm.paths import local_path


@dataclass(frozen=True)
class UnfinishedRun:
    """A run of stage 2 that did not end.

    Attributes:
        name: of the run.
        start: the file that it began with; None for random weights.
    """

    name: str
    start: Path | None


def first_weights(output: Path, checkpoint: str | None, from_scratch: bool) -> Path | None:
    """The file that training begins with, by the guide's rule: the one that is named, else stage 2's last, else stage 1's
    best or last, else none.

    Args:
        output: the folder of the guide's files.
        checkpoint: the file that is named.

    Raises:
        UserError: one was asked for that is not there, or one and none.
    """
    if checkpoint is not None:
        if from_scratch:
            raise UserError("--from_scratch begins with random weights, --vision_checkpoint with a file's: give one")
        path = local_path(checkpoint, Path.cwd())
        if not path.is_file():
            raise UserError(f"--vision_checkpoint: there is no file {path}")
        return path
    if from_scratch:
        return None
    files = (output / name for name in (STAGE_2_FINAL, STAGE_1_BEST, STAGE_1_FINAL))
    return next((file for file in files if file.is_file()), None)


def unfinished_run(output: Path) -> UnfinishedRun | None:
    """The last run of stage 2, if that did not end: files of its first epochs are no start of the same command.

    Args:
        output: the folder of the guide's files.
    """
    config = output / STAGE_2_CONFIG
    try:
        described = json.loads(config.read_text("utf-8-sig")) if config.is_file() else {}
    except ValueError:  # whoever writes to it refuses it by its name
        return None
    start = described.get("first_weights")
    if described.get("finished", True) or (start is not None and not Path(start).is_file()):
        return None
    return UnfinishedRun(str(described["run"]), None if start is None else Path(start))
