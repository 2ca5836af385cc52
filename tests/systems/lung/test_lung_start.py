"""A lung model that starts from the weights of an earlier one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from worker_processes import run_workers

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.command_line import parse
from raymed.models.settings import ModelSettings
from raymed.storage.folder import Folder
from raymed.systems.lung.options import LungOptions
from raymed.systems.lung.recipe import LungRecipe
from raymed.training.settings import StartSettings
from raymed.training.start import StartWeights

FOUR = LungRecipe(("0", "1", "2", "3"), ("a", "b", "c", "d"), 56, ModelSettings(preset="tiny"))
TWO = replace(FOUR, codes=("0", "1"), names=("no", "yes"))


def built(recipe: LungRecipe, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return recipe.build()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported network of an earlier run."""
    folder = tmp_path_factory.mktemp("earlier") / "model"
    FOUR.export(built(FOUR, 1), folder)
    return folder


def start(folder: Path, *new: str) -> StartWeights:
    return StartWeights.of(folder, new, None)


def test_every_weight_and_statistic_is_that_of_the_earlier_run(earlier: Path) -> None:
    module = built(FOUR, 2)
    start(earlier).load_into(module)
    expected = built(FOUR, 1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_a_part_that_is_declared_new_keeps_its_own_start_and_no_other_part_does(earlier: Path) -> None:
    module, fresh, before = built(TWO, 2), built(TWO, 2).state_dict(), built(FOUR, 1).state_dict()
    start(earlier, "head").load_into(module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, (fresh if name.startswith("head.") else before)[name]), name


def test_adapters_are_laid_over_the_earlier_weights(tmp_path: Path) -> None:
    recipe = replace(FOUR, model=ModelSettings(preset="internvl-tiny"))
    recipe.export(built(recipe, 1), tmp_path / "model")
    adapted = built(replace(recipe, model=ModelSettings(preset="internvl-tiny", language_lora=2, vision_lora=2)), 2)
    start(tmp_path / "model").load_into(adapted)
    recipe.export(adapted, tmp_path / "again")
    first, again = (recipe.load(tmp_path / name).state_dict() for name in ("model", "again"))
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, msg=name)


@pytest.mark.parametrize(
    ("recipe", "new", "reason"),
    [
        (TWO, (), r"of another shape: head\.2\.bias, head\.2\.weight.*--start\.new"),
        (TWO, ("haed",), r"start\.new names haed, which the network does not have\. Its parts are backbone, head"),
        (
            replace(FOUR, model=ModelSettings(preset="internvl-tiny")),
            (),
            r"they lack .*; the network has no backb",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_names_that_do_not(
    earlier: Path, recipe: LungRecipe, new: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        start(earlier, *new).load_into(built(recipe, 2))


def test_the_weights_lie_in_the_storage_under_their_digest_and_bind_the_run(
    earlier: Path, tmp_path: Path, prepared: Prepared
) -> None:
    options = LungOptions(data=prepared.folder.uri, storage=str(tmp_path), start=StartSettings(str(earlier)))
    spec = replace(options, model=ModelSettings(preset="tiny")).spec(prepared)
    assert spec.start is not None
    assert Folder.at(spec.start.uri).path == str(tmp_path / "start" / spec.start.digest)
    module = built(FOUR, 2)
    spec.start.load_into(module)
    without = replace(spec, start=None).origin()
    assert without["start"] == "" and spec.origin()["start"] == {"digest": spec.start.digest, "new": []}
    copied = tmp_path / "start" / spec.start.digest / "model.safetensors"
    copied.write_bytes(copied.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="damaged"):
        spec.start.load_into(module)


def load(worker: int, out: Path, network: Path, recipe: LungRecipe) -> None:
    """A worker of two, of which the first alone has the weights."""
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{out}/rendezvous-{len(recipe.names)}")
    module = built(recipe, 2 + worker)
    try:
        StartWeights(str(network if worker == 0 else out / "not-here"), "digest").load_on_all(module)
        torch.save(module.state_dict(), out / f"{worker}.pt")
    except UserError as error:
        (out / f"{worker}.txt").write_text(str(error))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_one_worker_opens_the_weights_and_all_begin_with_them(earlier: Path, tmp_path: Path) -> None:
    """Every worker of a machine built the network twice and read the weights anew."""
    for recipe in (FOUR, TWO):
        run_workers(load, (tmp_path, earlier, recipe), 2)
    expected = built(FOUR, 1).state_dict()
    for worker in range(2):
        found = torch.load(tmp_path / f"{worker}.pt")
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        assert "of another shape" in (tmp_path / f"{worker}.txt").read_text(), "that they do not fit is said on all"


def test_both_flags_are_understood_and_the_second_needs_the_first() -> None:
    words = shlex.split("--start.from models:/raymed-lung@champion --start.new head,backbone.embedder")
    options = parse(LungOptions, words)
    assert options.start.weights == "models:/raymed-lung@champion"
    assert options.start.parts == ("head", "backbone.embedder")
    with pytest.raises(UserError, match=r"give --start\.from too"):
        StartSettings(new="head")
