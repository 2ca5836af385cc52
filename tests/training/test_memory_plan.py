"""What fits into memory is found before a run, and stays; the losses do not depend on it; what does not fit hurts nobody."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from conftest import write_prepared  # and processes that import this module find the toy
from ray import cloudpickle
from torch import nn
from worker_processes import run_workers

from raymed.data.prepared import Prepared
from raymed.data.stream import Staged, stage
from raymed.errors import UserError
from raymed.recipes.recipe import Batch, Loss, LossTerm
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training import memory_plan
from raymed.training.checkpoint import checkpoint_names, read_history
from raymed.training.lone_worker import train_alone
from raymed.training.memory_plan import PLAN, MemoryPlan, chosen, largest_of, settled, shared_name, sizes_of
from raymed.training.memory_try import Tried
from raymed.training.process import prepare_process
from raymed.training.rendezvous import meet_nobody
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.worker_context import WorkerContext

CPU = torch.device("cpu")
A_ROW = 384 * 2**20  # bytes that a row keeps: more than processes differ in what they hold from their start
BLOCK = 16 * 2**20  # of them, each as long as another: few larger ones may not find their places on the heap again


@dataclasses.dataclass(frozen=True)
class Heavy(ToyRecipe):
    """The toy, of which every row keeps much for the backward pass."""

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        loss = super().compute_loss(module, batch)
        total = loss.terms["loss"].total
        for _ in range(A_ROW // BLOCK):
            total = total + total.expand(len(batch.ids), BLOCK // 4).tanh().sum() * 0.0  # tanh keeps what it computed
        return Loss({"loss": LossTerm(total)}, loss.sums)


@ray.remote(num_cpus=1)
class Worker:
    """A trial's process, of which a test says how much it may hold."""

    def train(self, spec: RunSpec, source: Staged, room: int) -> list[dict[str, Any]]:
        """What a run reports."""
        memory_plan.room_of = lambda device: room  # type: ignore[assignment]
        reports: list[dict[str, Any]] = []
        train_alone(spec, source, None, True, reports.append)
        return reports


def spec_of(prepared: Prepared, storage: Path, name: str, **train: Any) -> RunSpec:
    recipe = Heavy(**dataclasses.asdict(ToyRecipe.for_data(prepared.labels, prepared.size)))
    settings: dict[str, Any] = {"steps": 2, "global_batch": 4, "norm_group": 1, "micro_batch": "auto"} | train
    return RunSpec(name, str(storage), prepared.folder.uri, recipe, TrainSettings(**settings))


def losses(spec: RunSpec) -> Sequence[float]:
    last = read_history(spec.folder.child(checkpoint_names(spec.folder)[-1]))[-1]
    return [last["train_loss"], last["val_loss"], last["global_step"]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("cluster")
def test_the_largest_micro_batch_that_fits_is_found_by_trying_and_stays_and_what_does_not_fit_hurts_nobody(
    prepared: Prepared, tmp_path: Path
) -> None:
    cloudpickle.register_pickle_by_value(memory_plan_tests())
    whole, small, none = (spec_of(prepared, tmp_path, name) for name in ("whole", "small", "none"))
    source, worker = stage(prepared, whole.all_rows(prepared)), Worker.remote()
    ray.get(worker.train.remote(whole, source, 2**40))
    plan = json.loads(whole.folder.read(PLAN))
    assert plan["micro_batch"] == 4, "the whole global batch fits"

    room = int((plan["needed"] - A_ROW) / memory_plan.FILLED)  # not for four, and for two
    reports = ray.get(worker.train.remote(small, source, room))
    assert json.loads(small.folder.read(PLAN))["micro_batch"] == 2
    assert reports[-1]["description"]["micro_batch"] == "2", "the record says which"
    assert losses(small) == pytest.approx(losses(whole), rel=1e-4), "the global batch is as it was"

    small.folder.delete(checkpoint_names(small.folder)[-1])
    reports = ray.get(worker.train.remote(small, source, 2**40))
    assert reports[-1]["description"]["micro_batch"] == "2", "a run that goes on keeps to what it began with"

    (*_, last) = ray.get(worker.train.remote(none, source, 2**20))
    assert "no micro-batch of this run fits into the 0.00 GiB" in last["failed"]
    assert not none.folder.exists(PLAN)


def settle(worker: int, specs: list[RunSpec], rooms: list[int], folder: Path) -> None:
    """What runs one after the other take, and which of them tried something."""
    prepare_process(CPU)
    meet_nobody(CPU)
    context = WorkerContext(0, 1, 0, 1, CPU, lambda report: None, lambda: False)
    tries: list[str] = []

    def found(spec: RunSpec, workers: int, room: int, attempt: Any) -> MemoryPlan:
        tries.append(spec.name)
        return MemoryPlan(room // 10, False, room // 2, room)

    memory_plan.chosen, taken = found, []
    for spec, room in zip(specs, rooms, strict=True):
        memory_plan.room_of = lambda device, room=room: room  # type: ignore[misc]
        taken.append(settled(context, spec, lambda text: None).train.micro_batch)
    (folder / "taken.json").write_text(json.dumps({"tries": tries, "taken": taken}))


def test_a_plan_is_not_missed_where_the_storage_is_away_for_a_moment_nor_written_below_its_mount_point(
    tmp_path: Path,
) -> None:
    """The run tried again what fits, perhaps on a card that others fill by now."""
    spec = dataclasses.replace(spec_of(write_prepared(tmp_path / "data"), tmp_path / "runs", "first"), generation="a search")
    for away in (lambda: memory_plan._written(spec), lambda: memory_plan._write(spec, MemoryPlan(4, False, 1, 2))):
        with pytest.raises(FileNotFoundError):
            away()
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    assert memory_plan._written(spec) is None
    memory_plan._write(spec, MemoryPlan(4, False, 1, 2))
    assert memory_plan._written(spec) == MemoryPlan(4, False, 1, 2)
    for damaged in (b"{", b'{"micro_batch": 4, "unknown": 1}'):
        spec.folder.write(PLAN, damaged)
        assert MemoryPlan.read(spec.folder, PLAN) is None, "it is tried again"


@pytest.mark.slow
def test_trials_of_the_same_needs_try_once_and_what_fits_no_more_is_tried_again(tmp_path: Path) -> None:
    first = dataclasses.replace(spec_of(write_prepared(tmp_path / "data"), tmp_path, "first"), generation="a search")
    other = dataclasses.replace(first, name="other", train=dataclasses.replace(first.train, lr=3e-4))
    smaller, lone = dataclasses.replace(other, name="smaller"), dataclasses.replace(other, name="lone", generation="")
    run_workers(settle, ([first, other, smaller, other, lone], [40, 60, 10, 60, 60], tmp_path))
    seen = json.loads((tmp_path / "taken.json").read_text())
    assert seen == {"tries": ["first", "smaller", "lone"], "taken": [4, 4, 1, 4, 6]}
    assert other.folder.read(PLAN) == first.folder.read(PLAN), "each run's record has its own copy"


def memory_plan_tests() -> Any:
    """This module; workers do not find it."""
    import sys

    return sys.modules[__name__]


GIB = 2**30


def attempt_of(seen: list[tuple[Any, str]], kept: int, again: int, least: int = 1) -> Any:
    """A try that needs so many bytes a pack; fewer packs than `least` are no micro-batch."""

    def attempt(train: TrainSettings) -> Tried:
        size, how = train.packs_at_once, train.checkpoint_activations
        seen.append((size, how))
        if size < least:
            return Tried(0, f"{least} items meet")
        needed = size * (again if how == "on" else kept)
        return Tried(needed if needed <= 10 * GIB else None)

    return attempt


def plan_of(attempt: Any, room: int, **train: Any) -> MemoryPlan:
    spec = RunSpec("run", "/nowhere", "", ToyRecipe(("a", "b"), 8), TrainSettings(global_batch=16, **train))
    return chosen(spec, 1, room, attempt)


def test_activations_are_computed_again_only_where_not_even_the_smallest_micro_batch_fits_otherwise() -> None:
    seen: list[tuple[Any, str]] = []
    both: dict[str, Any] = {"micro_batch": "auto", "checkpoint_activations": "auto"}
    plan = plan_of(attempt_of(seen, GIB, GIB // 8), 10 * GIB, **both)
    assert (plan.micro_batch, plan.recomputed, plan.needed) == (8, False, 8 * GIB) and {how for _, how in seen} == {"off"}
    plan = plan_of(attempt_of(seen, 11 * GIB, GIB), 10 * GIB, **both)
    assert (plan.micro_batch, plan.recomputed) == (8, True)
    stated = {"micro_batch": 8, "checkpoint_activations": "auto"}
    for kept, recomputed in ((GIB, False), (2 * GIB, True)):
        plan = plan_of(attempt_of(seen, kept, GIB // 8), 10 * GIB, **stated)
        assert (plan.micro_batch, plan.recomputed) == (8, recomputed)


def test_a_try_that_fills_the_room_to_its_rim_does_not_fit() -> None:
    assert plan_of(attempt_of([], GIB, 0), 16 * GIB, micro_batch="auto").micro_batch == 8, "16 would not leave a tenth"


def test_what_is_too_small_for_a_networks_groups_is_not_taken_for_what_fits() -> None:
    assert plan_of(attempt_of([], GIB, 0, least=8), 10 * GIB, micro_batch="auto").micro_batch == 8
    with pytest.raises(UserError, match=r"the smallest is 8 items meet\. docs/gpu\.md"):
        plan_of(attempt_of([], 2 * GIB, 0, least=8), 10 * GIB, micro_batch="auto")


@pytest.mark.parametrize("most", range(7))
def test_the_largest_size_that_fits_is_found_whichever_it_is(most: int) -> None:
    sizes, tried = [1, 2, 3, 4, 6, 8], list[int]()

    def fits(size: int) -> bool:
        tried.append(size)
        return size in sizes[:most]

    assert largest_of(sizes, fits) == (sizes[most - 1] if most else None)
    assert len(tried) == len(set(tried)) <= 4


def test_sizes_are_those_that_make_a_step_shorter_on_so_many_workers() -> None:
    assert sizes_of(16, 1) == [1, 2, 3, 4, 6, 8, 16]
    assert sizes_of(16, 3) == [1, 2, 3, 6]
    assert sizes_of(1, 4) == [1]


@dataclasses.dataclass(frozen=True)
class Dropping(ToyRecipe):
    """With a dropout that it names among its settings."""

    dropout: float = 0.0

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"model": {"dropout": self.dropout}}


def test_trials_share_a_plan_that_differ_in_nothing_that_takes_memory() -> None:
    def name(dropout: float = 0.0, **train: Any) -> str:
        recipe = Dropping(("normal", "viral"), 56, dropout=dropout)
        settings = TrainSettings(**{"micro_batch": "auto", "global_batch": 16, "lr": 1e-3} | train)
        return shared_name(RunSpec("run", "/nowhere", "", recipe, settings, generation="a search"))

    dropped = name(dropout=0.1)
    assert name() == name(lr=3e-4, weight_decay=0.3) and dropped == name(dropout=0.4, lr=3e-4)
    others = {name(global_batch=8), name(ema=0.9), name(zero_stage=2), dropped}
    assert len(others | {name()}) == 5, "of what takes memory each has its own"


def test_a_plan_leaves_nothing_to_find_out() -> None:
    train = TrainSettings(micro_batch="auto", checkpoint_activations="auto")
    assert train.asks_memory and not MemoryPlan(4, True, 1, 1).apply(train).asks_memory
    assert MemoryPlan(4, True, 1, 1).apply(train).checkpoint_activations == "on"
