"""A search goes on with its pretrained weights wherever they lie now, and with no others."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ResNetForImageClassification

from raymed.data.prepared import Prepared
from raymed.errors import CommonError, UserError
from raymed.models import backbones
from raymed.models.settings import ModelSettings
from raymed.systems.lung.options import LungOptions
from raymed.training.checkpoint import Progress
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.recorder import parameters
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension


def write_weights(folder: Path, size: int, seed: int) -> Path:
    torch.manual_seed(seed)
    ResNetForImageClassification(backbones.PRESETS["tiny"](size)).save_pretrained(folder)
    return folder


def options(prepared: Prepared, storage: Path, path: Path, **others: Any) -> LungOptions:
    return LungOptions(data=prepared.folder.uri, storage=str(storage), model=ModelSettings(path=str(path)), **others)


def spec(prepared: Prepared, storage: Path, path: Path) -> RunSpec:
    return options(prepared, storage, path).spec(prepared)


def search(prepared: Prepared, storage: Path, path: Path, **others: Any) -> Search:
    storage.mkdir(exist_ok=True)
    return options(prepared, storage, path, **others).open_search(prepared, Budget(2))


def test_the_same_command_after_a_move_is_the_same_search_and_after_an_exchange_another(
    prepared: Prepared, tmp_path: Path
) -> None:
    first = write_weights(tmp_path / "a" / "model", prepared.size, 1)
    name = search(prepared, tmp_path / "runs", first).name
    moved = Path(shutil.move(first, tmp_path / "b"))
    assert search(prepared, tmp_path / "runs", moved).name == name
    write_weights(moved, prepared.size, 2)
    assert search(prepared, tmp_path / "runs", moved).name != name


def test_a_search_that_was_called_after_a_path_goes_on_under_its_name(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, runs = write_weights(tmp_path / "model", prepared.size, 1), tmp_path / "runs"
    now = search(prepared, runs, path)
    with monkeypatch.context() as before:
        before.setattr("raymed.tuning.search_name.by_contents", lambda values, held: values)
        earlier = search(prepared, runs, path)
    assert earlier.name != now.name
    earlier.open_study()
    assert search(prepared, runs, path).name == earlier.name
    assert search(prepared, runs, Path(shutil.move(path, tmp_path / "moved"))).name == now.name, "nobody knows its weights"


def test_a_search_of_that_name_with_exchanged_weights_is_refused_with_both_fingerprints(
    prepared: Prepared, tmp_path: Path
) -> None:
    path = write_weights(tmp_path / "model", prepared.size, 1)
    begun = search(prepared, tmp_path / "runs", path, name="night")
    begun.open_study()
    search(prepared, tmp_path / "runs", Path(shutil.copytree(path, tmp_path / "copy")), name="night").open_study()
    write_weights(path, prepared.size, 2)
    other = search(prepared, tmp_path / "runs", path, name="night")
    was, now = begun.weights["model.path"], other.weights["model.path"]
    with pytest.raises(UserError, match=f"other pretrained weights: model.path was {was}, and is {now} now"):
        other.open_study()


def test_one_of_the_weights_that_are_searched_may_not_be_exchanged(prepared: Prepared, tmp_path: Path) -> None:
    one, two = (write_weights(tmp_path / name, prepared.size, seed) for seed, name in enumerate(("one", "two")))
    space = SearchSettings(space={"model.path": Dimension(choices=(str(one), str(two)))})
    begun = search(prepared, tmp_path / "runs", one, name="night", search=space)
    begun.open_study()
    write_weights(two, prepared.size, 3)
    with pytest.raises(UserError, match=f"other pretrained weights: {two} was weights"):
        search(prepared, tmp_path / "runs", one, name="night", search=space).open_study()
    assert begun.run_spec(1, {"model.path": str(two)}).weights["model.path"] == begun.weights[str(two)]


def test_a_checkpoint_goes_on_with_moved_weights_and_refuses_exchanged_ones(prepared: Prepared, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "model", prepared.size, 1)
    begun = spec(prepared, tmp_path, path)
    stored = Progress(origin=begun.origin())
    moved = spec(prepared, tmp_path, Path(shutil.copytree(path, tmp_path / "moved")))
    stored.check_origin(moved.origin(), "step-1", moved.pretrained)
    write_weights(path, prepared.size, 2)
    other = spec(prepared, tmp_path, path)
    with pytest.raises(UserError, match=r"model\.path was weights [0-9a-f]{16}, and is weights [0-9a-f]{16} now"):
        stored.check_origin(other.origin(), "step-1", other.pretrained)


def test_a_checkpoint_of_before_goes_on_from_the_path_that_it_names(prepared: Prepared, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "model", prepared.size, 1)
    run = spec(prepared, tmp_path, path)
    stored = Progress(origin=dataclasses.replace(run, pretrained={}).origin())
    assert stored.origin["model"]["path"] == str(path)
    stored.check_origin(run.origin(), "step-1", run.pretrained)
    elsewhere = spec(prepared, tmp_path, Path(shutil.copytree(path, tmp_path / "elsewhere")))
    with pytest.raises(UserError, match=rf"model\.path was {path}, and is weights"):
        stored.check_origin(elsewhere.origin(), "step-1", elsewhere.pretrained)


def test_a_worker_whose_machine_has_other_weights_refuses_them(prepared: Prepared, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "model", prepared.size, 1)
    run = spec(prepared, tmp_path, path)
    run.check_pretrained()
    write_weights(path, prepared.size, 2)
    with pytest.raises(CommonError, match=f"{path} on .* holds weights .*, and the run began with weights"):
        run.check_pretrained()


def test_mlflow_compares_what_weights_hold_and_keeps_where_they_lay_first(prepared: Prepared, tmp_path: Path) -> None:
    run = spec(prepared, tmp_path, write_weights(tmp_path / "model", prepared.size, 1))
    compared, told = parameters(run, run.settings())
    assert told == {"model.path": str(tmp_path / "model")}
    assert compared["weights.model.path"] == run.weights["model.path"]
    assert "model.path" not in compared
    assert parameters(run, run.recipe.settings() | {"seed": 1})[0]["seed"] == "1"
