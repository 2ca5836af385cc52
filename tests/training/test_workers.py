"""Promise 3 in the engine, on real processes without Ray: what comes out does not depend on who computes what."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from worker_processes import run_workers

from raymed.errors import UserError
from raymed.models.norm import convert_batch_norms
from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup
from raymed.training.engine import Engine, TrainSettings, division
from raymed.training.process import prepare_process

CPU = torch.device("cpu")
STEPS = 3


@dataclass(frozen=True)
class Pictures:
    """A recipe of which an `Engine` needs a few methods; of its pictures every third counts for two units."""

    dropout: float = 0.0
    contrastive: bool = False

    def build(self) -> nn.Module:
        # A bias before a batch norm has no gradient but rounding, which Adam makes as large as any.
        first, second = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 3, 3, bias=False)
        layers = [first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(3)]
        return convert_batch_norms(nn.Sequential(*layers, nn.Dropout(self.dropout), nn.Flatten(), nn.Linear(48, 2)))

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        first, *others = module.parameters()
        return [ParameterGroup("first", [first]), ParameterGroup("others", others)]

    def export(self, module: nn.Module, folder: Path) -> None:
        torch.save(module.state_dict(), folder / "exported.pt")

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        return {"logits": module(batch.tensors["x"])}

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        each = F.cross_entropy(module(batch.tensors["x"]), batch.tensors["y"], reduction="none")
        return Loss({"loss": LossTerm((each * batch.tensors["units"]).sum())})


def encode(rows: list[int], step: int) -> Batch:
    pictures = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1000 * step + row)) + row for row in rows]
    units = torch.tensor([2.0 if row % 3 == 0 else 1.0 for row in rows])
    tensors = {"x": torch.stack(pictures), "y": torch.tensor([row % 2 for row in rows]), "units": units}
    return Batch(tensors, {"loss": float(units.sum())}, [])


SPANNING = (Pictures(), TrainSettings(global_batch=16, micro_batch=16, norm_group=16, lr=1e-2), 16)
"""One group of 16, which more workers than one divide among them."""

REST = (Pictures(), TrainSettings(global_batch=16, micro_batch=16, norm_group=16, lr=1e-2), 2)
"""Two pictures, as an epoch's last step may have, of which a third worker gets none."""

APART = (Pictures(dropout=0.5), TrainSettings(global_batch=8, micro_batch=4, norm_group=4, lr=1e-2), 8)
"""Two groups of 4, one after the other on one worker, at the same time on two."""


TOGETHER = (Pictures(), TrainSettings(global_batch=16, micro_batch=16, norm_group=8, lr=1e-2), 16)
"""Two groups of 8, in one micro-batch of one worker, in one each of two."""

AVERAGED = (Pictures(), replace(SPANNING[1], ema=0.9), 16)


def compare_norms(zero: Any) -> list[tuple[float, float]]:
    """From now on each gradient's norm, as it is summed at once and as DeepSpeed sums it, group by group."""
    compared: list[tuple[float, float]] = []
    at_once = zero.scaled_global_norm

    def both() -> torch.Tensor:
        norm = at_once()
        compared.append((float(norm), float(type(zero).scaled_global_norm(zero))))
        return norm

    zero.scaled_global_norm = both
    return compared


def work(worker: int, workers: int, out: Path) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=worker, world_size=workers, init_method=f"file://{out}/rendezvous")
    results = {}
    for name, (recipe, settings, packs) in {
        "spanning": SPANNING,
        "rest": REST,
        "apart": APART,
        "together": TOGETHER,
        "averaged": AVERAGED,
    }.items():
        engine = Engine(recipe, settings, 10, 0, CPU)  # type: ignore[arg-type]
        compared = compare_norms(engine._engine.optimizer) if workers > 1 else []
        divided = division(recipe, engine.module, settings, workers)  # type: ignore[arg-type]
        losses, norms = [], []
        for step in range(STEPS):
            share = divided.share(tuple((row,) for row in range(packs)), worker)
            mine = [(encode([row for (row,) in micro.packs], step), micro) for micro in share]
            engine.step(mine, step)
            losses.append(engine.read()[-1].sums["loss/loss"])
            norms.append(engine.gradient_norm)
        assert len(compared) == (STEPS if workers > 1 else 0), (name, compared)
        assert all(ours == theirs for ours, theirs in compared), (name, compared)
        results[name] = {"losses": losses, "norms": norms, "state": copy.deepcopy(engine.module.state_dict())}
    engine.export(out)()
    dist.barrier()  # the first worker alone writes it
    with engine.evaluating():
        results["averaged"]["seen"] = torch.from_numpy(engine.predict(encode([1, 2], STEPS))["logits"])
    results["averaged"]["exported"] = torch.load(out / "exported.pt")
    torch.save(results, out / f"results-{worker}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """By number of workers, what each of them has after a few steps."""
    results = {}
    for workers in (1, 2, 3):
        out = tmp_path_factory.mktemp("workers")
        run_workers(work, (workers, out), workers)
        results[workers] = [torch.load(out / f"results-{worker}.pt") for worker in range(workers)]
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spanning", "rest", "together"])
@pytest.mark.parametrize("workers", [2, 3])
def test_a_group_that_workers_divide_trains_as_it_does_on_one(trained, name, workers):
    (alone,), others = trained[1], trained[workers]
    for other in others:
        assert other[name]["norms"] == pytest.approx(alone[name]["norms"], rel=1e-3)
        for step, loss in enumerate(alone[name]["losses"]):
            assert other[name]["losses"][step] == pytest.approx(loss, rel=1e-6 if step == 0 else 1e-5)
        for key, value in alone[name]["state"].items():
            torch.testing.assert_close(other[name]["state"][key], value, atol=1e-4, rtol=1e-3, msg=key)


@pytest.mark.slow
def test_two_workers_that_take_turns_of_one_are_bit_equal_to_it_dropout_included(trained):
    (alone,), others = trained[1], trained[2]
    for other in others:
        assert other["apart"]["losses"] == alone["apart"]["losses"]
        assert all(torch.equal(other["apart"]["state"][key], value) for key, value in alone["apart"]["state"].items())


@pytest.mark.slow
def test_averaged_weights_are_what_is_evaluated_and_exported(trained):
    """And not the last step's, which they lag behind."""
    (alone,) = trained[1]
    averaged = alone["averaged"]
    for name in ("0.weight", "1.running_mean", "7.weight"):
        assert not torch.allclose(averaged["exported"][name], averaged["state"][name], rtol=1e-2), name
    network = Pictures().build().eval()
    network.load_state_dict(averaged["exported"])
    torch.testing.assert_close(network(encode([1, 2], STEPS).tensors["x"]), averaged["seen"])


def test_a_micro_batch_that_would_change_what_batch_norm_sees_is_refused():
    """It used to change the result in silence, as if it only said how the work is done."""
    small, plain = TrainSettings(micro_batch=8, norm_group=16), nn.Linear(1, 1)
    with pytest.raises(UserError, match=r"16 items meet .* Set train.micro_batch to 16, or.* train.norm_group to 8"):
        division(Pictures(), Pictures().build(), small, 1)  # type: ignore[arg-type]
    assert division(Pictures(), Pictures().build(), small, 2).group == 16  # type: ignore[arg-type]
    assert division(Pictures(), plain, small, 1).group == 0  # type: ignore[arg-type]
    with pytest.raises(UserError, match="only 8 are computed at once"):
        division(Pictures(contrastive=True), plain, small, 2)  # type: ignore[arg-type]


def test_groups_of_every_last_global_batch_fit_where_a_run_may_start():
    """24 are two groups of 12, each of which a micro-batch of 12 holds; a last batch of 13 is one, and ended the run."""
    network = Pictures().build()
    with pytest.raises(UserError, match=r"16 items meet .* Set train.micro_batch to 16, or.* train.norm_group to 12"):
        division(Pictures(), network, TrainSettings(global_batch=24, micro_batch=12, norm_group=16), 1)  # type: ignore[arg-type]
    divided = division(Pictures(), network, TrainSettings(global_batch=24, micro_batch=12, norm_group=12), 1)  # type: ignore[arg-type]
    for packs in range(1, 25):
        divided.length(packs)
