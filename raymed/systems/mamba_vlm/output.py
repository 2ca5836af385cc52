"""The files that the guide's scripts leave, made from what a run left in the storage."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymed.errors import RunError
from raymed.recipes.recipe import Recipe
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.file_names import STAGE_1_BEST, STAGE_1_FINAL, STAGE_2_BEST, STAGE_2_FINAL
from raymed.systems.mamba_vlm.guide_files import write_checkpoint
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.training.checkpoint import Progress, copy_to_local, fetch_newest
from raymed.training.spec import RunSpec
from raymed.training.state import read_state

LOG, CONFIG = "stage2_train_log.csv", "stage2_config.json"
COLUMNS = ("step", "epoch", "caption_loss")
LAST = 5  # epochs whose mean loss is told at the end


def write_stage_1(spec: RunSpec, best: str, folder: Path) -> list[str]:
    """Write the best and the last weights of a run of stage 1; gives lines about them.

    Args:
        best: address of the run's best checkpoint.
    """
    _write_both(spec, best, folder / STAGE_1_BEST, folder / STAGE_1_FINAL)
    return [f"files of stage 1: {folder / STAGE_1_BEST}, {folder / STAGE_1_FINAL}"]


def write_stage_2(spec: RunSpec, best: str, folder: Path) -> list[str]:
    """The same of stage 2, with the settings that a check needs, and the run's epochs added to the log.

    Args:
        best: address of the run's best checkpoint.
    """
    recipe = spec.recipe
    assert isinstance(recipe, ReportRecipe)
    progress = _write_both(spec, best, folder / STAGE_2_BEST, folder / STAGE_2_FINAL)
    losses = [epoch["train_loss"] for epoch in progress.history]
    last = losses[-LAST:]
    if _config_of(folder).get("run") != spec.name:  # a finished run that is started again adds nothing
        _append_log(folder / LOG, progress)
    config = {
        "max_visual_tokens": recipe.bridge.max_visual_tokens,
        "mamba_model": recipe.language.path,
        "epochs": spec.train.epochs,
        "batch_size": spec.train.global_batch,
        "lr": spec.train.lr,
        "max_text_len": recipe.max_text_len,
        "gradient_accumulation_steps": -(-spec.train.global_batch // spec.train.micro_batch),
        "run": spec.name,
    }
    Folder.at(folder).write(CONFIG, json.dumps(config, ensure_ascii=False, indent=2).encode())
    return [
        *(f"epoch {number} 平均 caption_loss {loss:.4f}" for number, loss in enumerate(losses, start=1)),
        f"最近 {len(last)} 个 epoch 平均 caption_loss {sum(last) / len(last):.4f}",
        f"files of stage 2: {folder / STAGE_2_BEST}, {folder / STAGE_2_FINAL}, {folder / LOG}, {folder / CONFIG}",
    ]


def _write_both(spec: RunSpec, best: str, best_file: Path, last_file: Path) -> Progress:
    """The best and the last weights; gives how far the run came."""
    write_best(best, best_file, spec.recipe)
    with tempfile.TemporaryDirectory() as temporary:
        newest = fetch_newest(spec.folder, Path(temporary))
        if newest is None:
            raise RunError(f"{spec.folder.uri} holds no whole checkpoint")
        return _write(newest, last_file, spec.recipe)


def write_best(best: str, file: Path, recipe: Recipe) -> None:
    """Write the weights of a run's best checkpoint, with the settings that they belong to.

    Args:
        best: its address.
        recipe: the run's.
    """
    with _local(Folder.at(best)) as checkpoint:
        _write(checkpoint, file, recipe)


def _write(checkpoint: Path, file: Path, recipe: Recipe) -> Progress:
    progress, state = Progress.read(checkpoint), read_state(checkpoint)
    weights, val_loss = state.module | state.averaged, progress.history[-1]["val_loss"]
    trained = isinstance(recipe, ReportRecipe) and not recipe.language.frozen
    write_checkpoint(file, weights, progress.global_step, trained, val_loss=val_loss, settings=recipe.settings())
    return progress


@contextmanager
def _local(source: Folder) -> Iterator[Path]:
    """A folder of the storage on this machine."""
    with tempfile.TemporaryDirectory() as temporary:
        if not source.is_local:
            copy_to_local(source, Path(temporary))
        yield Path(source.path if source.is_local else temporary)


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return content


def _append_log(path: Path, progress: Progress) -> None:
    """A line for each epoch; steps and epochs go on from those that are there."""
    lines = list(csv.reader(path.read_text("utf-8").splitlines())) if path.is_file() else [list(COLUMNS)]
    steps, epochs = (int(lines[-1][0]), int(lines[-1][1])) if len(lines) > 1 else (0, 0)
    for number, epoch in enumerate(progress.history, start=1):
        lines.append([str(steps + int(epoch["global_step"])), str(epochs + number), f"{epoch['train_loss']:.6f}"])
    content = "".join(",".join(line) + "\n" for line in lines)
    Folder.at(path.parent).write(path.name, content.encode())
