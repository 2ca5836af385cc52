"""A training state goes on under another number of workers and another ZeRO stage: no Ray, but real processes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn
from worker_processes import run_workers

from raymed.data.micro_batches import MicroBatch
from raymed.errors import UserError
from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup
from raymed.training.engine import Engine, TrainSettings
from raymed.training.means import means
from raymed.training.process import prepare_process
from raymed.training.state import TrainingState, read_state

SETTINGS = TrainSettings(lr=1e-2, ema=0.9, warmup=0.2)


class Network(nn.Module):
    """Odd sizes, so that every partition is padded; a frozen layer, a tied weight and a buffer that counts steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.tied = nn.Linear(5, 7, bias=False)
        self.tied.weight = self.first.weight
        self.frozen = nn.Linear(7, 3)
        self.last = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.norm.weight.dtype)
        hidden = torch.tanh(self.norm(self.first(x) + self.tied(x)))
        return self.last(self.frozen(hidden)).float()


@dataclass(frozen=True)
class Regression:
    """A recipe of which an `Engine` needs four methods."""

    width: int = 7

    def build(self) -> nn.Module:
        network = Network()
        network.frozen.requires_grad_(False)
        return network

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
        return [ParameterGroup("matrices", matrices), ParameterGroup("vectors", vectors, lr_scale=0.5, decay=False)]

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        return Loss({"loss": LossTerm(F.mse_loss(module(batch.tensors["x"]), batch.tensors["y"], reduction="sum"))})


def batch(step: int, slot: int) -> Batch:
    draw = torch.Generator().manual_seed(100 * step + slot)
    return Batch({"x": torch.randn(4, 5, generator=draw), "y": torch.randn(4, 3, generator=draw)}, {"loss": 4}, [])


def work(worker: int, workers: int, settings: TrainSettings, start: Path | None, ends: dict[int, Path], first: int) -> None:
    """One worker: go on at step `first` from the checkpoint `start`, leave one at each of `ends`, and stop at the last."""
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    device = torch.device("cpu")
    prepare_process(device)
    last = max(ends)
    dist.init_process_group("gloo", rank=worker, world_size=workers, init_method=f"file://{ends[last]}.rendezvous")
    engine = Engine(Regression(), settings, 10, 0, device)  # type: ignore[arg-type]
    if start is not None:
        engine.load(start)
    losses = []
    for step in range(first, last):
        mine = [(batch(step, slot), MicroBatch(())) for slot in range(worker, 2, workers)]
        engine.step(mine, step)
        losses.append(means(engine.read()[-1].sums)["loss"])
        engine.module.seen += 1
        if step + 1 in ends:
            engine.save(ends[step + 1])()
    if worker == 0:
        torch.save(losses, ends[last] / "losses.pt")
    dist.barrier()
    dist.destroy_process_group()


def train(workers: int, settings: TrainSettings, start: Path | None, ends: dict[int, Path], first: int = 0) -> list[float]:
    """The losses of steps `first` to the last of `ends`, computed by that many processes."""
    run_workers(work, (workers, settings, start, ends, first), workers)
    return torch.load(ends[max(ends)] / "losses.pt")


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_two_workers_then_one_then_two_compute_the_losses_of_an_uninterrupted_run(tmp_path, zero_stage):
    settings = replace(SETTINGS, zero_stage=zero_stage)
    start, end = tmp_path / "start", tmp_path / "end"
    whole = train(2, settings, None, {3: start, 9: end})
    one = train(1, settings, start, {6: tmp_path / "one"}, 3)
    two = train(2, settings, tmp_path / "one", {9: tmp_path / "two"}, 6)
    assert one + two == pytest.approx(whole[3:], abs=1e-6)
    torch.save(vars(read_state(end)), tmp_path / "state.pth")
    here, there = TrainingState(**torch.load(tmp_path / "state.pth", weights_only=True)), read_state(tmp_path / "two")
    assert here.step == there.step == 9
    assert here.schedule["_last_lr"] == there.schedule["_last_lr"]
    assert here.averaged
    for part in ("module", "exp_avg", "exp_avg_sq", "averaged"):
        ours, theirs = getattr(here, part), getattr(there, part)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=2e-6, rtol=0, msg=f"{part} of {name}")


@pytest.mark.slow
def test_a_state_goes_on_under_another_zero_stage_and_in_bf16(tmp_path):
    settings = replace(SETTINGS, ema=0.0, precision="bf16")
    whole = train(1, replace(settings, zero_stage=2), None, {2: tmp_path / "start", 4: tmp_path / "end"})
    other = train(2, replace(settings, zero_stage=3), tmp_path / "start", {4: tmp_path / "other"}, 2)
    assert other == pytest.approx(whole[2:], rel=2e-2), "bf16 has three digits"


def state_of(network: nn.Module) -> TrainingState:
    trained = {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}
    return TrainingState(dict(network.state_dict()), trained, trained, {}, 1, {})


def harm_missing(network: Network) -> None:
    del network.last


def harm_shape(network: Network) -> None:
    network.last = nn.Linear(3, 4)


def harm_frozen(network: Network) -> None:
    network.last.requires_grad_(False)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (harm_missing, "it lacks: last.bias, last.weight"),
        (harm_shape, "of another shape: last.bias, last.weight"),
        (harm_frozen, "trained in one only: last.bias, last.weight"),
    ],
)
def test_a_state_of_another_network_is_refused_by_the_names_that_do_not_fit(harm, told):
    other = Network()
    harm(other)
    state_of(Network()).check(Network())
    with pytest.raises(UserError, match=told):
        state_of(other).check(Network())


class Planted:
    """What a pickle can do to whoever opens it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.slow
def test_a_pickle_among_the_shards_of_a_checkpoint_is_not_executed(tmp_path):
    train(1, SETTINGS, None, {1: tmp_path / "start"})
    (shard,) = (tmp_path / "start" / "state").glob("*_model_states.pt")
    torch.save(torch.load(shard, weights_only=False) | {"more": Planted(tmp_path / "executed")}, shard)
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="Weights only load failed"):
        train(1, SETTINGS, tmp_path / "start", {2: tmp_path / "end"}, 1)
    assert not (tmp_path / "executed").exists()
