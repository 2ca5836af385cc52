"""A micro-batch that is tried out before a run: what it keeps is what autograd keeps, and what does not fit is told."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.recipes.recipe import Batch, Loss, LossTerm
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.rehearsal import activation_bytes, rehearse
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Chain(ToyRecipe):
    """Its loss is that of a network from vectors to a sum."""

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        return Loss({"loss": LossTerm(module(batch.tensors["x"]).sum())})


def kept(recipe: ToyRecipe, module: nn.Module, rows: int = 8, limit: float = 60.0) -> int:
    spec = RunSpec("run", "/nowhere", "", recipe, TrainSettings(precision="fp32"))
    batch = Batch({"x": torch.randn(rows, 16)}, {"loss": float(rows)}, [str(row) for row in range(rows)])
    return activation_bytes(spec, module, batch, limit)


@pytest.fixture
def recipe(prepared: Prepared) -> Chain:
    return Chain(**dataclasses.asdict(ToyRecipe.for_data(prepared.labels, prepared.size)))


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_weights_are_not(recipe: Chain) -> None:
    one = nn.Sequential(nn.Linear(16, 32), nn.Tanh())
    assert kept(recipe, one) == 8 * 32 * 4, "tanh keeps its output; the input of the first layer is the batch's"
    two = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 64), nn.Tanh())
    assert kept(recipe, two) == 8 * (32 + 64) * 4, "what tanh and the next layer both keep is one tensor"
    assert kept(recipe, two, rows=16) == 2 * kept(recipe, two)


def test_a_place_that_another_tensor_takes_later_counts_again(recipe: Chain) -> None:
    """Nothing is kept while it is counted, so that later tensors come to lie where earlier ones were."""
    deep = nn.Sequential(*(layer for _ in range(50) for layer in (nn.Linear(16, 16), nn.Tanh())))
    assert kept(recipe, deep) == 50 * 8 * 16 * 4


def test_counting_that_takes_too_long_is_given_up(recipe: Chain) -> None:
    with pytest.raises(TimeoutError, match="longer than 0 s"):
        kept(recipe, nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Tanh()), limit=0.0)


def test_a_micro_batch_of_a_run_is_computed_as_the_run_would(prepared: Prepared) -> None:
    recipe, train = ToyRecipe.for_data(prepared.labels, prepared.size), TrainSettings(global_batch=8, micro_batch=4)
    spec = RunSpec("run", "/nowhere", prepared.folder.uri, recipe, train)
    module = recipe.build()
    rehearsal = rehearse(spec, prepared, module, CPU)
    assert rehearsal.records == 4 and rehearsal.seconds > 0 and rehearsal.activations > 0 and rehearsal.peak is None
    assert all(each.grad is not None for each in module.parameters())
    with torch.no_grad():
        next(iter(module.parameters())).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        rehearse(spec, prepared, module, CPU)
