"""Which checkpoint file stage 2 begins with."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from raymed.errors import UserError
from raymed.systems.mamba_vlm.file_names import STAGE_1_BEST, STAGE_1_FINAL, STAGE_2_CONFIG, STAGE_2_FINAL
from raymed.systems.mamba_vlm.paths import local_path

log = logging.getLogger("raymed")


def first_weights(output: Path, checkpoint: str | None, from_scratch: bool) -> Path | None:
    """The file that training begins with, by the guide's rule: the one that is named, else stage 2's last, else stage 1's
    best or last, else none. A run that did not end keeps its own, so that the same command goes on with it.

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
    unfinished, start = _unfinished(output)
    if unfinished:
        log.info(
            "%s did not end: the same command goes on with it. --vision_checkpoint begins with a file, --from_scratch anew",
            unfinished,
        )
        return start
    for name, says in (
        (STAGE_2_FINAL, "training goes on, for as many epochs more"),
        (STAGE_1_BEST, "stage 1's best"),
        (STAGE_1_FINAL, "stage 1's last"),
    ):
        if (output / name).is_file():
            log.info("begins with %s (%s); --from_scratch begins anew", output / name, says)
            return output / name
    log.warning("no checkpoint of stage 1 or 2 in %s: encoder and bridge begin with random weights", output)
    return None


def _unfinished(output: Path) -> tuple[str, Path | None]:
    """Name and start of the last run of stage 2, if that did not end: files of its first epochs are no start of another."""
    config = output / STAGE_2_CONFIG
    try:
        described = json.loads(config.read_text("utf-8-sig")) if config.is_file() else {}
    except ValueError:  # whoever writes to it refuses it by its name
        return "", None
    start = described.get("first_weights")
    if described.get("finished", True) or (start is not None and not Path(start).is_file()):
        return "", None
    return str(described["run"]), None if start is None else Path(start)
