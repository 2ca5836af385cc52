"""Compiled blocks compute what the same blocks compute otherwise, keep their names, and say where nothing is compiled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from worker_processes import run_workers

from raymed.data.micro_batches import MicroBatch
from raymed.models.norm import convert_batch_norms
from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup
from raymed.training import compiled
from raymed.training.compiled import blocks, compile_blocks, obstacle
from raymed.training.engine import Engine
from raymed.training.process import prepare_process
from raymed.training.rendezvous import meet_nobody
from raymed.training.settings import TrainSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
WIDTH = 16
SIZES = (8, 8, 6, 8, 5, 7, 3)


class Block(nn.Module):
    """A norm, two layers, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.gelu(self.first(self.norm(x))))


class Deep(nn.Module):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@dataclass(frozen=True)
class Vectors:
    """A recipe of which an `Engine` needs a few methods."""

    contrastive = False

    def build(self) -> nn.Module:
        return Deep()

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        return [ParameterGroup("all", list(module.parameters()))]

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        return Loss({"loss": LossTerm(F.cross_entropy(module(batch.tensors["x"]), batch.tensors["y"], reduction="sum"))})


def train(worker: int, folder: Path, sizes: Sequence[int]) -> None:
    """Losses of steps on batches of several sizes, with compiled blocks and without."""
    from torch._dynamo.utils import counters

    os.environ["HOME"], compiled.GIVEN = str(folder), None  # whatever this process's parent has compiled
    compiled.keep_compiled()  # as on a card
    torch.manual_seed(0)
    prepare_process(CPU)
    meet_nobody(CPU)
    seen: dict[str, Any] = {}
    for how in ("off", "on"):
        settings = TrainSettings(lr=1e-2, warmup=0.0, compile=how)  # type: ignore[arg-type]
        engine = Engine(Vectors(), settings, len(sizes), 0, CPU)  # type: ignore[arg-type]
        for step, rows in enumerate(sizes):
            draw = torch.Generator().manual_seed(step)
            tensors = {"x": torch.randn(rows, WIDTH, generator=draw), "y": torch.arange(rows) % 2}
            packs = tuple((row,) for row in range(rows))
            engine.step([(Batch(tensors, {"loss": float(rows)}, []), MicroBatch(packs))], step)
        steps = [[each.gradient_norm, *(total for total, _ in each.sums.values())] for each in engine.read()]
        seen[how] = {"steps": steps, "said": engine.description["compile"], "names": list(engine.module.state_dict())}
    seen["graphs"] = counters["stats"]["unique_graphs"]
    seen["found"], seen["compiled"] = (counters["aot_autograd"][f"autograd_cache_{each}"] for each in ("hit", "miss"))
    seen["place"] = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    (folder / "seen.json").write_text(json.dumps(seen))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for CPUs with g++")
def test_a_run_with_compiled_blocks_has_the_losses_of_one_without_and_the_next_process_compiles_nothing_again(
    tmp_path: Path,
) -> None:
    run_workers(train, (tmp_path, SIZES))
    seen = json.loads((tmp_path / "seen.json").read_text())
    run_workers(train, (tmp_path, SIZES[:1]))
    again = json.loads((tmp_path / "seen.json").read_text())
    assert (again["found"], again["compiled"], again["graphs"]) == (2, 0, 2)
    assert seen["place"] == again["place"] == f"{tmp_path}/.raymed/compiled"
    assert seen["on"]["said"] == "2 blocks" and seen["off"]["said"] == "off"
    assert [len(step) for step in seen["on"]["steps"]] == [2] * len(SIZES), "a norm and a loss"
    assert seen["graphs"] == 4, "each of two blocks: one of the first size, and one of all that come after"
    for own, expected in zip(seen["on"]["steps"], seen["off"]["steps"], strict=True):
        assert own == pytest.approx(expected, rel=1e-4)
    assert seen["on"]["names"] == seen["off"]["names"], "checkpoints and exports go on with either"


def test_blocks_are_those_of_the_innermost_lists_without_batch_norms() -> None:
    one, other = Deep(), Deep()
    both = nn.ModuleDict({"members": nn.ModuleList([one, other])})
    assert list(blocks(both)) == [*one.layers, *other.layers], "and not the members of an ensemble"
    convolutions = nn.ModuleDict({"stages": nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))])})
    assert not list(blocks(convert_batch_norms(convolutions))), "what a batch norm saw is noted outside any graph"


def test_what_is_not_compiled_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert compile_blocks(Deep(), TrainSettings(compile="on", zero_stage=3), CPU).startswith("off: ZeRO 3")
    assert "nothing is compiled, because ZeRO 3 gathers weights" in caplog.text
    assert "no blocks" in compile_blocks(nn.Linear(2, 2), TrainSettings(compile="on"), CPU)
    assert "there is no GPU" in obstacle(TrainSettings(compile="auto"), CPU)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert "C compiler" in obstacle(TrainSettings(compile="auto"), GPU)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: "/usr/bin/cc")
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: "/nowhere")
    assert "Python.h" in obstacle(TrainSettings(compile="auto"), GPU)
    assert compile_blocks(Deep(), TrainSettings(), CPU) == "off", "which is nothing to say"


@pytest.mark.slow
def test_older_torch_counts_all_blocks_as_one_and_gives_none_of_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(signature=lambda function: SimpleNamespace(parameters={}))
    monkeypatch.setattr(compiled, "inspect", old)
    monkeypatch.setattr(compiled.limits, "recompile_limit", 8)
    assert compile_blocks(Deep(), TrainSettings(compile="on"), CPU) == "2 blocks"
    assert compiled.limits.recompile_limit == 2 * compiled.RECOMPILES
