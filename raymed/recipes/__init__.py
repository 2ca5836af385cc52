"""One file per system: how rows become a batch, what the loss is, what is judged, what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from raymed.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from raymed.recipes.recipe import Recipe

RECIPE_FILE = "recipe.json"


def open_model(folder: Path) -> tuple[Recipe, nn.Module]:
    """The recipe and the network that `Recipe.export` wrote into a folder, ready to predict.

    Raises:
        UserError: the folder holds no exported model, one of an unknown recipe, or one that is not complete.
    """
    path = folder / RECIPE_FILE
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("recipe")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder} holds no exported model: {RECIPE_FILE} cannot be read ({error})") from error
    if name == "lung":
        from raymed.recipes.lung import LungRecipe

        recipe = LungRecipe.read(folder)
        return recipe, recipe.load(folder)
    raise UserError(f"{path} is of the recipe {name!r}, which this raymed does not know (it knows: lung). Update raymed")
