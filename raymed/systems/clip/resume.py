"""Whether two configurations are the same, and whether a run may go on from a ``.pth`` file of other settings."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raymed.data.image import LATER
from raymed.errors import UserError
from raymed.models.pretrained import by_contents
from raymed.systems.clip.recipe import ClipRecipe
from raymed.tracking.names import flatten
from raymed.training.spec import RunSpec

log = logging.getLogger("raymed")

PRETRAINED = "pretrained"  # of a configuration: what the weights hold that it begins with, by their paths
# of a configuration: the same is trained without them, or the recipe says it too
PREPARED = "prepare"  # likewise: how its data were prepared, which their digest says too
_INSIGNIFICANT = ("version", "save_best", "text_encoder", PRETRAINED, PREPARED)

FREE = {
    "epochs",
    "steps",
    "lr",
    "warmup",
    "final_lr",
    "patience",
    "min_delta",
    "monitor",
    "patience_monitor",
    "validate_steps",
}
"""Of the training settings, what a run that goes on may change: how long, on which schedule."""


def deciding(config: Mapping[str, Any], held: Mapping[str, str]) -> dict[str, Any]:
    """What decides a configuration's results, with what pretrained weights hold in place of their paths."""
    settings: dict[str, Any] = by_contents(
        {name: value for name, value in config.items() if name not in _INSIGNIFICANT}, held
    )
    return settings


def is_same(stored: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a configuration that was written down is the one that is meant."""
    held = config.get(PRETRAINED, {})
    return deciding(stored, held | stored.get(PRETRAINED, {})) == deciding(config, held)


def require_same(path: Path, content: Mapping[str, Any], spec: RunSpec, force: bool) -> None:
    """Make sure that a run goes on with what its file was made of.

    Args:
        content: of the file.
        force: go on all the same where the file's epochs were learned otherwise; it is told then.

    Raises:
        UserError: classes, towers, pictures or data are others, or settings that change what is learned are, without
            `force`; names each.
    """
    recipe = spec.recipe
    assert isinstance(recipe, ClipRecipe)
    theirs, ours = sorted(content["class_to_idx"], key=content["class_to_idx"].get), list(recipe.names)
    if theirs != ours:
        raise UserError(f"{path} knows the classes {', '.join(theirs)}, and the data have {', '.join(ours)}")
    prepared, config = spec.open_data(), content["config"]
    others = config["data_digest"] != prepared.digest
    differences = list(_fixed(content, spec, recipe))
    differences += _prepared_otherwise(config.get(PREPARED, {}), prepared.manifest.settings) if others else []
    if differences:
        raise UserError(f"{path} cannot be gone on from: {'; '.join(differences)}. Give what it was trained with")
    if others:
        raise UserError(
            f"{path} was trained on other images, patients or splits: what it has learned may be validated "
            "on here. Give the --data-dir, --split, --n-splits and --patients that it was trained with"
        )
    changed = [f"{name} was {before}, and is {now}" for name, before, now in _learned(content, spec, recipe)]
    if changed and not force:
        raise UserError(
            f"{path} was trained with other settings: {'; '.join(changed)}. Give those, or --force to go "
            "on with these from here"
        )
    if changed:
        log.warning("goes on from %s with other settings than it was trained with: %s", path, "; ".join(changed))


def _fixed(content: Mapping[str, Any], spec: RunSpec, recipe: ClipRecipe) -> Iterator[str]:
    """What differs of that without which weights or figures do not fit, by the flags that say it."""
    config, stored = content["config"], content["recipe"]
    fold = config["fold"] - 1 if config["use_cv"] else config["fold"]
    for flag, before, now in (
        ("--image-encoder", config["image_encoder"], recipe.model.image_encoder),
        ("--text-encoder", Path(config["text_encoder"]).name, Path(recipe.model.text_encoder).name),  # wherever it lies now
        ("--embed-dim", config["embed_dim"], recipe.model.embed_dim),
        ("--model.freeze_image", stored["model"]["freeze_image"], recipe.model.freeze_image),
        ("--model.freeze_text", stored["model"]["freeze_text"], recipe.model.freeze_text),
        ("--model.text_lr_scale", stored["model"]["text_lr_scale"], recipe.model.text_lr_scale),
        ("--train.monitor", config.get("train", {}).get("monitor", config["early_stopping_monitor"]), spec.train.monitor),
        ("--early-stopping-monitor", config["early_stopping_monitor"], spec.watched.name),
        ("--img-size", stored["size"], recipe.size),
        ("--fold", fold, spec.fold),
        ("--random-state", config.get("random_state", spec.seed), spec.seed),
    ):
        if before != now:
            yield f"{flag} was {before!r}, and is {now!r}"


def _prepared_otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs in how pictures became data, by the flags that say it."""
    flags = {"split.weights": "--split", "split.folds": "--n-splits"}
    earlier, current = (dict(flatten({**each, "image": LATER | each.get("image", {})})) for each in (before, now))
    for name in sorted(earlier.keys() & current.keys() - {"seed", "image.size"}):  # which are told by their own flags
        if earlier[name] != current[name]:
            flag = flags.get(name, "--" + name.replace("_", "-"))
            yield f"{flag} was {earlier[name]}, and is {current[name]}"


def _learned(content: Mapping[str, Any], spec: RunSpec, recipe: ClipRecipe) -> Iterator[tuple[str, Any, Any]]:
    """Settings that change what is learned and differ, with both values."""
    stored, own = content["recipe"], json.loads(json.dumps(recipe.settings()))
    for name, before, now in zip(recipe.names, stored["texts"], own["texts"], strict=True):
        if before != now:
            yield f"the text of {name}", " / ".join(before), " / ".join(now)
    deciding = {name: value for name, value in spec.train.deciding().items() if name not in FREE}
    for part, before, now in (
        ("loss", stored["loss"], own["loss"]),
        ("augment", stored["augment"], own["augment"]),
        ("train", content["config"].get("train", {}), deciding),
        ("slices", content["config"].get("slices", {}), asdict(spec.sampling.validation)),
    ):
        for name in now.keys() & before.keys():
            if before[name] != now[name]:
                yield f"--{part}.{name}", before[name], now[name]
