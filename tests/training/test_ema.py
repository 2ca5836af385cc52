"""Averaged weights that workers share out are, bit by bit, those that one holds alone: real processes without Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from worker_processes import run_workers

from raymed.data.micro_batches import MicroBatch
from raymed.errors import UserError
from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup
from raymed.training.ema import AveragedWeights
from raymed.training.engine import Engine, TrainSettings
from raymed.training.process import prepare_process
from raymed.training.state import read_state

CPU, STEPS, DECAY = torch.device("cpu"), 4, 0.9


class Network(nn.Module):
    """Odd sizes, so that every partition is padded; a frozen layer, and statistics that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.frozen, self.last = nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.norm(self.first(x)))
        if self.training:
            self.mean += 0.5
        return self.last(self.frozen(hidden + self.mean))


@dataclass(frozen=True)
class Regression:
    """A recipe of which an `Engine` needs four methods."""

    def build(self) -> nn.Module:
        return Network()

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
        return [ParameterGroup("matrices", matrices), ParameterGroup("vectors", vectors, decay=False)]

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        return Loss({"loss": LossTerm(F.mse_loss(module(batch.tensors["x"]), batch.tensors["y"], reduction="sum"))})

    def export(self, module: nn.Module, folder: Path) -> None:
        torch.save(module.state_dict(), folder / "exported.pt")


def batch(step: int, slot: int) -> Batch:
    draw = torch.Generator().manual_seed(100 * step + slot)
    return Batch({"x": torch.randn(4, 5, generator=draw), "y": torch.randn(4, 3, generator=draw)}, {"loss": 4.0}, [])


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    """The whole network's, as it computes."""
    import deepspeed

    whole = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=engine.settings.zero_stage == 3):
            whole[name] = parameter.detach().clone()
    return whole | {name: buffer.clone() for name, buffer in engine.module.named_buffers()}


def begin(worker: int, workers: int, store: Path) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=worker, world_size=workers, init_method=f"file://{store}")


def step(engine: Engine, worker: int, workers: int, number: int) -> None:
    engine.step([(batch(number, slot), MicroBatch(())) for slot in range(worker, 2, workers)], number)
    engine.read()


def compare(worker: int, workers: int, out: Path) -> None:
    begin(worker, workers, out / f"rendezvous-{workers}")
    for stage in (1, 2, 3):
        engine = Engine(Regression(), TrainSettings(lr=1e-2, ema=DECAY, zero_stage=stage), 10, 0, CPU)  # type: ignore[arg-type]
        expected = weights(engine)
        for number in range(STEPS):
            step(engine, worker, workers, number)
            current, share = weights(engine), 1 - min(DECAY, (1 + number) / (10 + number))
            for name, value in expected.items():
                value.lerp_(current[name], share)
        with engine.evaluating():
            averaged = weights(engine)
        for name, value in expected.items():
            assert torch.equal(averaged[name], value), (workers, stage, name)
        assert not torch.equal(averaged["first.weight"], current["first.weight"])
        assert all(torch.equal(value, current[name]) for name, value in weights(engine).items()), "not put back"
        folder = out / f"{workers}-{stage}"
        folder.mkdir(exist_ok=True)
        engine.export(folder)()
        dist.barrier()  # the first worker alone writes it
        assert all(torch.equal(value, expected[name]) for name, value in torch.load(folder / "exported.pt").items())
        engine.save(folder)()
        dist.barrier()
        whole = read_state(folder).averaged
        assert whole.keys() == {name for name in expected if not name.startswith("frozen")}
        assert all(torch.equal(value, expected[name]) for name, value in whole.items())
    dist.barrier()
    dist.destroy_process_group()


def go_on(worker: int, workers: int, out: Path) -> None:
    """Checkpoints under their own stage and others: the average is the checkpoint's, and the next step's is the same."""
    begin(worker, workers, out / f"again-{workers}")
    after = {}
    for before, (stage, now) in product((1, 2), ((1, 1), (1, 3), (2, 1), (3, 2), (3, 3))):
        folder = out / f"{before}-{stage}"
        engine = Engine(Regression(), TrainSettings(lr=1e-2, ema=DECAY, zero_stage=now), 10, 0, CPU)  # type: ignore[arg-type]
        engine.load(folder)
        exported = torch.load(folder / "exported.pt")
        with engine.evaluating():
            averaged = weights(engine)
        assert all(torch.equal(value, exported[name]) for name, value in averaged.items()), (before, stage, now)
        step(engine, worker, workers, STEPS)
        with engine.evaluating():
            after[before, stage, now] = weights(engine)
    for (before, stage, now), values in after.items():
        for name, value in values.items():
            torch.testing.assert_close(value, after[before, 1, 1][name], atol=1e-6, rtol=0, msg=f"{name} {stage} {now}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_shared_out_averages_equal_one_held_alone_and_go_on_under_any_stage_and_number_of_workers(tmp_path: Path) -> None:
    for work in (compare, go_on):
        for workers in (1, 2):
            run_workers(work, (workers, tmp_path), workers)


@pytest.mark.slow
def test_whole_averages_of_an_earlier_checkpoint_go_on_and_their_lack_is_told(tmp_path: Path) -> None:
    run_workers(_earlier, (tmp_path,))


def _earlier(worker: int, out: Path) -> None:
    begin(worker, 1, out / "rendezvous")
    engine = Engine(Regression(), TrainSettings(lr=1e-2, ema=DECAY), 10, 0, CPU)  # type: ignore[arg-type]
    averaged = {name: value + 1 for name, value in weights(engine).items() if not name.startswith("frozen")}
    ema = AveragedWeights(engine._engine, DECAY)
    with pytest.raises(UserError, match=r"holds no averaged weights: train on with train\.ema 0"):
        ema.load(out)
    before = weights(engine)
    from safetensors.torch import save_file

    save_file(averaged, out / "ema.safetensors")
    ema.load(out)
    assert all(torch.equal(value, before[name]) for name, value in weights(engine).items())
    with ema.swapped():
        seen = weights(engine)
    assert all(torch.equal(seen[name], value) for name, value in averaged.items())
    dist.destroy_process_group()
