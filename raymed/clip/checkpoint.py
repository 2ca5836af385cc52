"""A CLIP run's training state as one ``.pth`` file, and a run that starts from such a file.

The files hold tensors and plain values only, and are read as such: nothing in them is executed.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.models.clip import image_normalisation
from raymed.recipes.clip import ClipRecipe
from raymed.seal import check_archive
from raymed.training.best import Best
from raymed.training.checkpoint import Progress, newest_step, publish
from raymed.training.engine import learning_rate
from raymed.training.spec import FitSpec
from raymed.training.state import TrainingState, write_state

log = logging.getLogger("raymed")

LISTS = {"train_loss": "train_loss", "train_acc": "train_accuracy", "val_loss": "val_loss", "val_acc": "val_acc"}
KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "class_to_idx", "progress", "config")


def history(progress: Progress) -> dict[str, list[float]]:
    """train_loss, train_acc, val_loss and val_acc of each epoch; accuracies in percent."""
    lists = {name: [epoch[metric] for epoch in progress.history] for name, metric in LISTS.items()}
    return lists | {"train_acc": [100 * share for share in lists["train_acc"]]}


def pack(progress: Progress, state: TrainingState, recipe: ClipRecipe, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``.pth`` file holds."""
    lists = history(progress)
    return {
        "epoch": progress.epoch,
        "model_state_dict": state.module,
        "optimizer_state_dict": {"step": state.step, "exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq},
        "scheduler_state_dict": state.schedule,
        "averaged_state_dict": state.averaged,
        **{name: values[-1] for name, values in lists.items()},
        "best_val_acc": max(lists["val_acc"]),
        "best_val_loss": min(lists["val_loss"]),
        "history": lists,
        "early_stopping_counter": progress.best.waited,
        "progress": json.loads(json.dumps(asdict(progress))),
        "config": dict(config),
        "class_to_idx": {name: place for place, name in enumerate(recipe.names)},
        "class_texts": {name: list(texts) for name, texts in zip(recipe.names, recipe.texts, strict=True)},
        "recipe": json.loads(json.dumps(recipe.settings())),
        "normalisation": image_normalisation(recipe.model, recipe.size),
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a ``.pth`` file whole: a reader sees the old one or the new one.

    Raises:
        UserError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(content), draft)
        os.replace(draft, path)  # noqa: PTH105
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {error}. Free space, or choose another --output-dir") from error
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; tensors are read from the disk as they are used.

    Raises:
        UserError: no such file, a damaged one, or not one of a CLIP run of this raymed.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}: give checkpoint_latest.pth or checkpoint_best.pth of a run's output folder")
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds on foreign bytes
        raise UserError(f"{path} is not a checkpoint with nothing but tensors and plain values: {error}") from error
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this raymed: it lacks {', '.join(missing)}")
    return content


def read_for(path: Path, spec: FitSpec) -> tuple[dict[str, Any], Progress]:
    """A file that a run can go on from, and how far it got.

    Raises:
        UserError: the file is of other classes or encoders, or the run would have nothing left to train.
    """
    content = read(path)
    _require_same(path, content, spec)
    values = content["progress"]
    progress = Progress(**values | {"best": Best(**values["best"]), "model": ""})  # its best model lies elsewhere
    progress.history[-1]["finished"] = 0.0
    if progress.epoch >= spec.train.epochs:
        raise UserError(f"{path} has been trained for {progress.epoch} epochs already: give more --epochs")
    if 0 < spec.train.patience <= progress.best.waited:
        raise UserError(
            f"{path} has waited {progress.best.waited} epochs for an improvement: give more --early-stopping-patience"
        )
    return content, progress


def start_from(path: Path, spec: FitSpec) -> None:
    """Make the file's state the first checkpoint of a run, unless the run has come as far by itself.

    The schedule is that of the run, at the file's epoch, whatever epochs, learning rate and batch the file was made with.

    Raises:
        UserError: as `read_for`.
    """
    content, progress = read_for(path, spec)
    steps = len(spec.plan(Prepared.open(spec.data), 0).batches)
    progress.global_step = progress.epoch * steps
    if newest_step(spec.folder) >= progress.global_step:
        log.info("the run goes on from its own checkpoint, as far as %s or further", path)
        return
    before, schedule = content["config"]["learning_rate"], content["scheduler_state_dict"]
    rates = [rate * spec.train.lr / before for rate in schedule["base_lrs"]]
    now = learning_rate(progress.global_step, steps * spec.train.epochs, spec.train)
    schedule = schedule | {
        "last_epoch": progress.global_step,
        "base_lrs": rates,
        "_last_lr": [rate * now for rate in rates],
    }
    state = TrainingState(
        module=content["model_state_dict"],
        averaged=content["averaged_state_dict"],
        schedule=schedule,
        **content["optimizer_state_dict"],
    )
    with tempfile.TemporaryDirectory() as temporary:
        write_state(Path(temporary), state)
        progress.write(Path(temporary))
        publish(Path(temporary), spec.folder, progress.global_step)
    log.info("goes on from %s after epoch %d", path, progress.epoch)


def _require_same(path: Path, content: Mapping[str, Any], spec: FitSpec) -> None:
    recipe = spec.recipe
    assert isinstance(recipe, ClipRecipe)
    theirs, ours = sorted(content["class_to_idx"], key=content["class_to_idx"].get), list(recipe.names)
    if theirs != ours:
        raise UserError(f"{path} knows the classes {', '.join(theirs)}, and the data have {', '.join(ours)}")
    config, scale = content["config"], content["recipe"]["model"]["text_lr_scale"]
    for name, its, runs in (
        *((name, config[name], getattr(recipe.model, name)) for name in ("image_encoder", "embed_dim")),
        ("text_encoder", Path(config["text_encoder"]).name, Path(recipe.model.text_encoder).name),  # wherever it lies now
        ("text_lr_scale", scale, recipe.model.text_lr_scale),
        ("early_stopping_monitor", config["early_stopping_monitor"], spec.train.monitor),
    ):
        if its != runs:
            raise UserError(f"{path} has {name} {its!r}, and the run has {runs!r}: give the one it was trained with")
    fold = config["fold"] if not config["use_cv"] else config["fold"] - 1
    if (config["data_digest"], fold) != (Prepared.open(spec.data).digest, spec.fold):
        raise UserError(
            f"{path} was trained on other data, splits or another fold: what it has learned may be validated on here. Give "
            "the data, --random-state, --split and --fold that it was trained with"
        )
