import contextlib
import os
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from device_reads import configure_as_on_a_card
from torch import nn
from worker_processes import run_workers

from raymed.data.micro_batches import MicroBatch
from raymed.errors import RunError, UserError
from raymed.models import precision
from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup
from raymed.training.cards import refuse_shared
from raymed.training.engine import Engine
from raymed.training.process import prepare_process
from raymed.training.settings import TrainSettings
from raymed.training.state import settle_kernel
from raymed.training.zero import deepspeed_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"micro_batch": 0}, {"ema": 1.0}])
def test_settings_that_cannot_train_are_refused_before_any_work(wrong):
    with pytest.raises(UserError, match="train"):
        TrainSettings(**wrong)


@pytest.mark.parametrize(("workers", "trained", "bucket"), [(1, 1000, 1000), (2, 1000, 1000), (2, 10**9, 500_000_000)])
def test_deepspeed_makes_room_for_no_more_gradients_than_there_are_and_casts_none_for_a_worker_alone(
    workers, trained, bucket
):
    config = deepspeed_config(TrainSettings(precision="fp32"), CUDA, workers, trained)
    assert config["zero_optimization"]["reduce_bucket_size"] == bucket
    assert ("communication_data_type" in config) == (workers > 1)


@pytest.mark.slow
def test_what_is_configured_for_a_gpu_starts_and_steps_under_each_zero_stage_and_precision():
    """There is no GPU here: DeepSpeed gets a GPU's configuration and computes on the CPU, whose AdamW is fused as well."""
    run_workers(_start_as_on_a_gpu)


def _start_as_on_a_gpu(_: int) -> None:
    _alone()
    import deepspeed

    precision.has_bf16 = lambda device: True  # the card that is not there
    for stage, kind, workers in product((1, 2, 3), ("fp32", "bf16", "amp"), (1, 2)):
        network = nn.Linear(4, 4)
        settings = TrainSettings(precision=kind, zero_stage=stage, beta2=0.95, eps=1e-15)
        config = deepspeed_config(settings, CUDA, workers, 20)
        engine, optimizer, *_ = deepspeed.initialize(model=network, model_parameters=network.parameters(), config=config)
        kernel = optimizer.optimizer
        assert (type(kernel), kernel.param_groups[0]["fused"]) == (torch.optim.AdamW, True), "compiled, or slow"
        assert (tuple(kernel.param_groups[0]["betas"]), kernel.param_groups[0]["eps"]) == ((0.9, 0.95), 1e-15)
        if not config["zero_optimization"]["overlap_comm"]:  # which takes streams
            engine.backward(engine(torch.ones(2, 4, dtype=torch.bfloat16 if kind == "bf16" else None)).float().sum())
            engine.step()
            assert engine.was_step_applied()


def _alone() -> None:
    """A process group of one, in this process."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())


@dataclass(frozen=True)
class Slope:
    """A recipe whose loss is finite and whose gradient is not: the square root of zero."""

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 3)

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        return [ParameterGroup("all", list(module.parameters()))]

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        return Loss({"loss": LossTerm((0 * module(batch.tensors["x"]).float()).sqrt().sum())})


@dataclass(frozen=True)
class Line(Slope):
    """Says in which type it computes."""

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        y = module(batch.tensors["x"])
        return Loss({"loss": LossTerm(y.float().sum())}, {"bf16": (float(y.dtype == torch.bfloat16), 1.0)})

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"y": module(batch.tensors["x"])}


@pytest.mark.slow
def test_autocast_is_for_training_steps_and_validation_computes_as_the_exported_model_will():
    run_workers(_validate_under_autocast)


def _validate_under_autocast(_: int) -> None:
    precision.has_bf16 = lambda device: True
    _alone()
    engine = Engine(Line(), TrainSettings(precision="amp"), 10, 0, CPU)  # type: ignore[arg-type]
    batch = Batch({"x": torch.rand(4, 3)}, {"loss": 4}, [])
    engine.step([(batch, MicroBatch(()))], 0)
    assert engine.read()[0].sums["bf16"] == (1.0, 1.0)
    with engine.evaluating(), torch.no_grad():
        assert np.array_equal(engine.predict(batch)["y"], engine.module(batch.tensors["x"]).numpy())
        assert engine.predict(batch)["y"].dtype == np.float32


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_ends_the_run_and_leaves_the_weights_alone():
    run_workers(_meet_a_slope)


def _meet_a_slope(_: int) -> None:
    _alone()
    for on_card, stage, kind, clip in product((False, True), (1, 2, 3), ("fp32", "bf16"), (0.0, 1.0)):
        if on_card:  # torch's fused AdamW, which leaves the update out by itself
            configure_as_on_a_card()
        engine = Engine(Slope(), TrainSettings(zero_stage=stage, precision=kind, clip=clip), 10, 0, CPU)  # type: ignore[arg-type]
        before = _weights(engine)
        x = torch.ones(2, 3, dtype=next(engine.module.parameters()).dtype)  # not every CPU computes in bf16
        with pytest.raises(RunError, match="gradient is not finite at step 7"):
            engine.step([(Batch({"x": x}, {"loss": 2}, []), MicroBatch(()))], 7)
            engine.read()
        assert torch.equal(before, _weights(engine)), (on_card, stage, kind, clip)


def _weights(engine: Engine) -> torch.Tensor:
    import deepspeed

    with deepspeed.zero.GatheredParameters([engine.module.weight], enabled=engine.settings.zero_stage == 3):
        return engine.module.weight.detach().clone()


@pytest.mark.parametrize("fused", [False, True])
def test_a_checkpoint_of_another_device_does_not_change_the_kernel(fused):
    """Parameters on `meta` stand for a card's."""

    def adamw(fused: bool, device: str) -> torch.optim.AdamW:
        parameter = nn.Parameter(torch.zeros(2, device=device))
        optimizer = torch.optim.AdamW([parameter], fused=fused)
        step = torch.tensor(3.0, device=device if fused else "cpu")
        optimizer.state[parameter] = {"step": step, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
        return optimizer

    optimizer = adamw(fused, "meta" if fused else "cpu")
    optimizer.load_state_dict(adamw(not fused, "cpu").state_dict())
    assert optimizer.param_groups[0]["fused"] != fused, "torch no longer takes options from the file: the mend can go"
    settle_kernel(optimizer)
    assert optimizer.param_groups[0]["fused"] == fused
    (state,) = optimizer.state.values()
    assert state["step"].device.type == ("meta" if fused else "cpu")


@pytest.mark.parametrize("cards", [("a, card 1", "a, card 2"), ("a, card 1", "b, card 1"), ("a, card 1", "a, card 1")])
def test_workers_that_share_a_card_are_refused_by_its_name(cards, tmp_path):
    torch.multiprocessing.start_processes(_compare_cards, (cards, tmp_path / "store"), nprocs=2, start_method="fork")


def _compare_cards(worker: int, cards: tuple[str, str], store: object) -> None:
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{store}")
    with contextlib.nullcontext() if len({*cards}) == 2 else pytest.raises(UserError, match=f"share a GPU .{cards[0]}"):
        refuse_shared(cards[worker], None)
