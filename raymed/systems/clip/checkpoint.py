"""A CLIP run's training state as one ``.pth`` file, and a run that starts from such a file.

The files hold tensors and plain values only, and are read as such: nothing in them is executed.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymed.errors import UserError
from raymed.storage.seal import check_archive
from raymed.systems.clip.class_texts import ClassTexts
from raymed.systems.clip.network import image_normalisation
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.clip.resume import require_same
from raymed.training.best import Best
from raymed.training.checkpoint import PREDICTIONS, Progress, new_name, newest_step, publish
from raymed.training.course import Course
from raymed.training.schedule import learning_rate
from raymed.training.spec import RunSpec
from raymed.training.state import TrainingState, write_state

log = logging.getLogger("raymed")

LATEST, BEST, CONFIG = "checkpoint_latest.pth", "checkpoint_best.pth", "config.json"
LISTS = {"train_loss": "train_loss", "train_acc": "train_accuracy", "val_loss": "val_loss", "val_acc": "val_acc"}
KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "class_to_idx", "progress", "config")


def history(progress: Progress) -> dict[str, list[float]]:
    """train_loss, train_acc, val_loss and val_acc of each epoch, empty where nobody was validated; accuracies in percent."""
    lists = {name: [epoch[metric] for epoch in progress.history if metric in epoch] for name, metric in LISTS.items()}
    return lists | {"train_acc": [100 * share for share in lists["train_acc"]]}


def meanings(recipe: ClipRecipe, unit: str) -> dict[str, str]:
    """What the lists of `history` are over.

    Args:
        unit: who is judged, see `Manifest`.
    """
    loss = (
        "contrastive loss of each picture in its group, both directions"
        if recipe.loss.kind == "clip"
        else ("cross-entropy of each picture over the texts of all classes")
    )
    if recipe.loss.kind == "class" and recipe.loss.text_to_image:
        loss += f", and {recipe.loss.text_to_image:g} times that of its text over the pictures of its group"
    return {
        "train_loss": f"{loss}, mean of the epoch, in training",
        "train_acc": "per cent of training pictures, as the steps of the epoch saw them, that are given their class",
        "val_loss": f"negative log likelihood of each {unit}'s class by the mean probability of its pictures, mean",
        "val_acc": "per cent of validation pictures that are given their class",
    }


def pack(
    progress: Progress,
    state: TrainingState,
    recipe: ClipRecipe,
    config: Mapping[str, Any],
    predictions: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """What a ``.pth`` file holds.

    Args:
        predictions: of the epoch's validation, as its checkpoint has them.
    """
    lists = history(progress)
    return {
        "epoch": progress.epoch,
        "model_state_dict": state.module,
        "optimizer_state_dict": {"step": state.step, "exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq},
        "scheduler_state_dict": state.schedule,
        "averaged_state_dict": state.averaged,
        **{name: values[-1] for name, values in lists.items() if values},
        **({"best_val_acc": max(lists["val_acc"]), "best_val_loss": min(lists["val_loss"])} if lists["val_loss"] else {}),
        "history": lists,
        "early_stopping_counter": progress.best.waited,
        "progress": json.loads(json.dumps(asdict(progress))),
        "config": dict(config),
        "class_to_idx": {name: place for place, name in enumerate(recipe.names)},
        "class_texts": {name: list(texts) for name, texts in zip(recipe.names, recipe.texts, strict=True)},
        "recipe": json.loads(json.dumps(recipe.settings())),
        "normalisation": image_normalisation(recipe.model, recipe.size),
        "predictions": {name: torch.from_numpy(values) for name, values in predictions.items()},
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


def stored_texts(path: Path) -> ClassTexts:
    """The class texts that a file was trained with. Raises: UserError: as `read`."""
    return {name: list(texts) for name, texts in read(path)["class_texts"].items()}


def read_for(path: Path, spec: RunSpec, force: bool = False) -> tuple[dict[str, Any], Progress]:
    """A file that a run can go on from, and how far it got.

    Args:
        force: see `require_same`.

    Raises:
        UserError: as `require_same`, or the run would have nothing left to train.
    """
    content = read(path)
    require_same(path, content, spec, force)
    progress = _progress(content)
    if not spec.train.steps and progress.epoch >= spec.train.epochs:
        raise UserError(f"{path} has been trained for {progress.epoch} epochs already: give more --epochs")
    if 0 < spec.train.patience <= progress.best.waited:
        raise UserError(
            f"{path} has waited {progress.best.waited} epochs for an improvement: give more --early-stopping-patience"
        )
    return content, progress


def start_from(path: Path, spec: RunSpec, force: bool = False) -> None:
    """Make the file's state the first checkpoint of a run, unless the run has come as far by itself.

    The best epoch so far, which lies in the file or in the one beside it, is a checkpoint of the run too: it is the run's
    best until a better one comes. The schedule is that of the run, at the file's epoch, whatever epochs, learning rate and
    batch the file was made with.

    Raises:
        UserError: as `read_for`.
    """
    content, progress = read_for(path, spec, force)
    _start(path, content, progress, spec)


def take_up(path: Path, spec: RunSpec) -> None:
    """As `start_from`, from the last file of the same run in another job, which may have come to its end. Nothing where its
    best epoch is not there any more: a run that had ended could never be judged."""
    content = read(path)
    require_same(path, content, spec, force=False)
    if _read_best(path, content) is not None:
        _start(path, content, _progress(content), spec)


def _start(path: Path, content: dict[str, Any], progress: Progress, spec: RunSpec) -> None:
    steps = len(spec.plan(spec.open_data(), 0).batches)
    if newest_step(spec.folder) >= progress.epoch * steps:
        log.info("the run goes on from its own checkpoint, as far as %s or further", path)
        return
    best, model = _read_best(path, content), ""
    if best is None:
        log.warning(
            "the best epoch so far, %d, is not in %s with its predictions, nor beside it in %s: only a better one will be "
            "judged and can be registered",
            *(progress.best.epoch, path, BEST),
        )
    elif best is not content:
        model = _publish(path.with_name(BEST), best, spec, steps, "")
    _publish(path, content, spec, steps, model)
    log.info("goes on from %s after epoch %d", path, progress.epoch)


def export(path: Path, content: Mapping[str, Any], recipe: ClipRecipe, folder: Path) -> None:
    """Write the network of a ``.pth`` file into a folder, as its run exports it.

    Args:
        recipe: the file's; its towers' files may lie elsewhere now.

    Raises:
        UserError: the weights do not fit the network that the file describes.
    """
    # an InternViT's width is known from its folder alone
    kept = recipe.model.image_weights if recipe.model.image_encoder == "internvit" else None
    module = replace(recipe, model=replace(recipe.model, image_weights=kept)).build()
    vision: Any = module.image_encoder
    vision.config.image_mean, vision.config.image_std = content["normalisation"]
    try:
        module.load_state_dict(content["model_state_dict"] | content["averaged_state_dict"])
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the network that it describes: {error}") from error
    recipe.export(module, folder)


def _progress(content: Mapping[str, Any]) -> Progress:
    """How far a file's run got, for another run to go on from: what lay elsewhere, or was of that run alone, is left out."""
    values = content["progress"]
    return Progress(**values | {"best": Best(**values["best"]), "model": "", "origin": {}})


def _read_best(path: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """The file of the best epoch so far: this one, or its run's other one; None where neither can be judged."""
    epoch, beside = content["progress"]["best"]["epoch"], path.with_name(BEST)
    best = content
    if epoch != content["epoch"]:
        try:
            best = read(beside)
        except UserError:
            return None
    same = all(best["history"][name] == content["history"][name][:epoch] for name in LISTS)
    known = best.get("predictions") or not _is_validated(best)
    return best if same and best["epoch"] == epoch and known else None


def _is_validated(content: Mapping[str, Any]) -> bool:
    """Whether anybody was left to validate a file's epochs."""
    return bool(content["history"]["val_loss"])


def _publish(path: Path, content: Mapping[str, Any], spec: RunSpec, steps: int, model: str) -> str:
    """Make a file's epoch a checkpoint of a run.

    Args:
        steps: of an epoch of the run.
        model: name of the run's checkpoint that holds the best model; empty where it is this one, or not there.

    Returns:
        The checkpoint's name.
    """
    progress = _progress(content)
    progress.global_step = progress.epoch * steps
    progress.history[-1]["finished"] = float(Course(spec.train, 0, progress).is_finished)
    name = new_name(progress.global_step, 0)
    before, schedule = content["config"]["learning_rate"], content["scheduler_state_dict"]
    rates = [rate * spec.train.lr / before for rate in schedule["base_lrs"]]
    now = learning_rate(progress.global_step, spec.train.steps or steps * spec.train.epochs, spec.train)
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
    predictions = {each: values.numpy() for each, values in content.get("predictions", {}).items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_state(folder, state)
        if predictions:
            np.savez(folder / PREDICTIONS, **predictions)
        if (predictions or not _is_validated(content)) and progress.best.epoch == progress.epoch:
            assert isinstance(spec.recipe, ClipRecipe)
            recipe = replace(ClipRecipe.from_settings(content["recipe"]), model=spec.recipe.model)
            export(path, content, recipe, folder / "model")
            model = name
        progress.model = model
        progress.write(folder)
        publish(folder, spec.folder, name)
    return name
