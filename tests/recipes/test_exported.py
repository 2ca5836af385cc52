"""Opening an exported model by what its settings say it is."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from raymed import systems as rooms
from raymed.errors import UserError
from raymed.recipes.exported import read_recipe, systems, write_settings


@pytest.mark.parametrize("recipe", ["ear", "lung-bridge", "mamba_vlm-", "lung-../recipe", "lung-a.b", None, 3])
def test_a_model_of_a_recipe_that_is_not_there_is_refused_by_its_name(tmp_path: Path, recipe: object) -> None:
    write_settings(tmp_path, {"recipe": recipe})
    with pytest.raises(UserError, match=r"does not know|cannot be read|is of the recipe"):
        read_recipe(tmp_path)


def test_what_tests_the_machine_finds_no_system_but_the_toy() -> None:
    assert systems() == ["toy"]
    others = [path.parent.name for path in Path(str(rooms.__file__)).parent.glob("*/__init__.py")]
    assert others
    for room in others:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"raymed.systems.{room}.recipe")
