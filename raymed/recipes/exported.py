"""An exported model: a folder with a network's weights and the settings of its recipe, sealed."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymed import systems as rooms
from raymed.errors import UserError
from raymed.storage.seal import check_seal, seal

if TYPE_CHECKING:
    from torch import nn

    from raymed.recipes.recipe import Recipe

RECIPE_FILE = "recipe.json"


def open_model(folder: Path) -> tuple[Recipe, nn.Module]:
    """The recipe and the network that `Recipe.export` wrote into a folder, ready to predict.

    Raises:
        UserError: as `read_recipe`, or the model is not complete.
    """
    recipe = read_recipe(folder)
    return recipe, recipe.load(folder)


def read_recipe(folder: Path) -> Recipe:
    """The recipe that `Recipe.export` wrote into a folder: `lung` is that of `lung/recipe.py`, and a system's second one,
    `NAME-part`, that of `NAME/part_recipe.py`.

    Raises:
        UserError: the folder holds no exported model, one of an unknown recipe, or one that is damaged.
    """
    check_seal(folder)
    name = str(_read(folder).get("recipe"))
    room, _, part = name.partition("-")
    known = room in systems() and (not part or part.isidentifier())
    path = f"{rooms.__name__}.{room}.{f'{part}_recipe' if part else 'recipe'}"
    if not known or importlib.util.find_spec(path) is None:
        raise UserError(
            f"{folder / RECIPE_FILE} is of the recipe {name!r}, which this raymed does not know (it knows the systems "
            f"{', '.join(systems())}). Update raymed"
        )
    module = importlib.import_module(path)
    recipe: Recipe = module.RECIPE.read(folder)
    return recipe


def systems() -> list[str]:
    """Names of the systems there are: the rooms of `raymed.systems` that hold a recipe."""
    return sorted(room.name for room in pkgutil.iter_modules(rooms.__path__) if room.ispkg)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a recipe's settings beside its exported weights and seal the folder, which ends an export."""
    (folder / RECIPE_FILE).write_text(json.dumps(settings, ensure_ascii=False, indent=2), "utf-8")
    seal(folder)


def read_settings(folder: Path, recipe: str) -> dict[str, Any]:
    """The settings that `write_settings` wrote for a model of this recipe.

    Raises:
        UserError: the folder holds no exported model, or one of another recipe.
    """
    settings = _read(folder)
    if settings.get("recipe") != recipe:
        raise UserError(f"{folder / RECIPE_FILE} is of the recipe {settings.get('recipe')!r}, not {recipe!r}")
    return settings


def _read(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / RECIPE_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no exported model: {RECIPE_FILE} cannot be read ({error})") from error
    if not isinstance(settings, dict):
        raise UserError(f"{folder} holds no exported model: {RECIPE_FILE} is not an object")
    return settings
