"""Stage 2's `stage2_train_log.csv`, `stage2_config.json` and `stage2_heartbeat.txt`, kept up to date while a run trains."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.file_names import STAGE_2_CONFIG, STAGE_2_HEARTBEAT, STAGE_2_LOG
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.training.spec import RunSpec
from raymed.training.step_log import STEPS, TOTAL_STEPS

log = logging.getLogger("raymed")

COLUMNS = ("step", "epoch", "caption_loss")
EVERY = 20  # steps between two printed losses


class LossLog:
    """A line for each step; steps and epochs of a run go on from the lines of earlier runs, and those of steps that an
    interrupted run does again are replaced.

    Attributes:
        after_step: the last step of the runs before; likewise `after_epoch`.
    """

    def __init__(self, folder: Path, spec: RunSpec) -> None:
        """Writes the settings, so that an interrupted run finds where its lines begin."""
        self._folder, self._run = folder, spec.name
        self._lines = _read_lines(folder / STAGE_2_LOG)
        config = _read_config(folder / STAGE_2_CONFIG)
        last = max(self._lines, default=0)
        begins = {"after_step": last, "after_epoch": self._lines[last][0] if last else 0}
        if config.get("run") == spec.name:
            begins = {name: config[name] for name in begins}
        self.after_step, self.after_epoch = begins["after_step"], begins["after_epoch"]
        self._epochs = spec.train.epochs
        folder.mkdir(parents=True, exist_ok=True)
        self._config = describe(spec) | begins
        self._write_config(finished=False)

    def watch(self, spec: RunSpec, happened: str, result: Mapping[str, Any]) -> None:
        """For `run_search`."""
        beat = f"{datetime.now():%Y-%m-%d %H:%M:%S}  {spec.name}  {'training' if happened == STEPS else happened}"
        point = "".join(f"  {name} {result[name]:g}" for name in ("epoch", "global_step") if name in result)
        Folder.at(self._folder).write(STAGE_2_HEARTBEAT, f"{beat}{point}\n".encode())
        if happened == "epoch" and "train_loss" in result:
            log.info("epoch %d 平均 caption_loss %.4f", self.after_epoch + int(result["epoch"]), result["train_loss"])
        if happened != STEPS:
            return
        total = result[TOTAL_STEPS]
        for row in result[STEPS]:
            step = int(row["global_step"])
            epoch, loss = (step - 1) * self._epochs // total + 1, row["train_loss"]
            self._lines[self.after_step + step] = (self.after_epoch + epoch, loss)
            if step % EVERY == 0:
                log.info("step %d  epoch %d  caption_loss %.4f", self.after_step + step, self.after_epoch + epoch, loss)
        lines = [",".join(COLUMNS), *(f"{step},{epoch},{loss:.6f}" for step, (epoch, loss) in sorted(self._lines.items()))]
        Folder.at(self._folder).write(STAGE_2_LOG, "".join(line + "\n" for line in lines).encode())

    @property
    def earlier_means(self) -> list[float]:
        """The mean loss of each epoch of the runs before, by its steps."""
        losses: dict[int, list[float]] = {}
        for step, (epoch, loss) in sorted(self._lines.items()):
            if step <= self.after_step:
                losses.setdefault(epoch, []).append(loss)
        return [sum(each) / len(each) for each in losses.values()]

    def finish(self) -> None:
        """Note that the run has ended: what it left is what training goes on from."""
        self._write_config(finished=True)

    def _write_config(self, finished: bool) -> None:
        content = json.dumps(self._config | {"finished": finished}, ensure_ascii=False, indent=2)
        Folder.at(self._folder).write(STAGE_2_CONFIG, content.encode())


def describe(spec: RunSpec) -> dict[str, Any]:
    """What `stage2_config.json` says of a run."""
    recipe = spec.recipe
    assert isinstance(recipe, ReportRecipe)
    return {
        "max_visual_tokens": recipe.bridge.max_visual_tokens,
        "mamba_model": recipe.language.path,
        "epochs": spec.train.epochs,
        "batch_size": spec.train.global_batch,
        "lr": spec.train.lr,
        "max_text_len": recipe.max_text_len,
        "gradient_accumulation_steps": -(-spec.train.global_batch // spec.train.packs_at_once),
        "run": spec.name,
        "first_weights": recipe.start,
    }


def _read_lines(path: Path) -> dict[int, tuple[int, float]]:
    """Epoch and loss by step.

    Raises:
        UserError: the file is damaged: it is not written over.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {int(row["step"]): (int(row["epoch"]), float(row["caption_loss"])) for row in csv.DictReader(file)}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} has no lines of {', '.join(COLUMNS)} ({error}): mend it, or move it away") from error


def _read_config(path: Path) -> dict[str, Any]:
    """Raises: UserError: the file is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8-sig")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): mend it, or move it away") from error
    return content
