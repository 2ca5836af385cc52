"""Opening an exported model by what its settings say it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.recipes.exported import read_recipe, write_settings


@pytest.mark.parametrize("recipe", ["ear", "lung-bridge", "mamba_vlm-", "lung-../recipe", "lung-a.b", None, 3])
def test_a_model_of_a_recipe_that_is_not_there_is_refused_by_its_name(tmp_path: Path, recipe: object) -> None:
    write_settings(tmp_path, {"recipe": recipe})
    with pytest.raises(UserError, match=r"does not know|cannot be read|is of the recipe"):
        read_recipe(tmp_path)
