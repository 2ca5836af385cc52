"""Several trials on one card: each keeps to its share of the memory, and one that runs out of it ends alone.

    python tests/gpu/run.py --parts shared

The processes are those of trials, each with its part of the card (`search.gpus_per_worker`). One of them asks for more than
its share, which is more than it may have and less than the card has free; its neighbours' losses are those of a trial that
has the card to itself. On a CPU, which has no shares, it says by itself that memory ran out. Before them is tried what one
needs (`search.gpus_per_worker: auto`), which must be what it then held.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import ray
import torch
from jsonargparse import auto_cli
from machine import open_device, show
from small_lung import open_data, small_lung
from torch import nn

from raymed.data.stream import Staged, stage
from raymed.recipes.recipe import Batch, Loss
from raymed.systems.lung.recipe import LungRecipe
from raymed.training.checkpoint import checkpoint_names, read_history
from raymed.training.lone_worker import train_alone
from raymed.training.memory_plan import FILLED, plan_alone
from raymed.training.memory_try import room_alone
from raymed.training.spec import RunSpec
from raymed.tuning.card_share import fitting

SHARE, TRIALS = 0.25, 4
ASKED = 0.3  # of the card, by the one that asks for too much
ALIKE = 0.02  # relative: neighbours may make kernels choose another order of sums


@dataclasses.dataclass(frozen=True)
class Greedy(LungRecipe):
    """Asks for more memory than its share of a card."""

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        device = next(module.parameters()).device
        if device.type == "cpu":
            raise torch.OutOfMemoryError("as a card says it")
        torch.empty(int(ASKED * torch.cuda.get_device_properties(device).total_memory), dtype=torch.uint8, device=device)
        return super().compute_loss(module, batch)


@ray.remote(num_cpus=0)
class Trial:
    """The process of a trial."""

    def train(self, spec: RunSpec, source: Staged) -> dict[str, Any]:
        """Train to the end; the most memory that it held of the card, and why it ended before its time."""
        began, ended = time.monotonic(), ""
        try:
            train_alone(spec, source, None, False, lambda report: None)
        except torch.OutOfMemoryError as error:
            ended = str(error)
        held = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
        return {"ended": ended, "held": held, "seconds": time.monotonic() - began}


def main(device: str = "cuda") -> None:
    """Train alone, then several at once.

    Args:
        device: cuda, or cpu to try it.
    """
    computing = open_device(device)
    on_card = device == "cuda"
    options = small_lung(device, "", epochs=2)
    prepared = open_data(options)
    given = options.spec(prepared)
    source = stage(prepared, given.all_rows(prepared))
    specs = [dataclasses.replace(given, name=f"shared-{number}") for number in range(TRIALS)]
    recipe = Greedy(
        **{each.name: getattr(given.recipe, each.name) for each in dataclasses.fields(given.recipe) if each.init}
    )
    specs[-1] = dataclasses.replace(specs[-1], recipe=recipe)

    alone = dataclasses.replace(given, name="alone")
    plan = plan_alone(alone, computing, room_alone(computing), 1)
    trial = Trial.options(num_gpus=1 if on_card else 0).remote()
    whole = ray.get(trial.train.remote(alone, source))
    ray.kill(trial)
    trials = [Trial.options(num_gpus=SHARE if on_card else 0).remote() for _ in specs]
    started = time.monotonic()
    seen = ray.get([trial.train.remote(spec, source) for trial, spec in zip(trials, specs, strict=True)])
    together = time.monotonic() - started
    expected, losses = loss_of(alone), [loss_of(spec) for spec in specs[:-1]]
    ray.shutdown()

    total = torch.cuda.get_device_properties(computing).total_memory if on_card else 0
    wrong = [
        f"a neighbour's val_loss is {loss:.5f} in place of {expected:.5f}"
        for loss in losses
        if abs(loss / expected - 1) > ALIKE
    ]
    wrong += [f"a neighbour ended: {each['ended']}" for each in seen[:-1] if each["ended"]]
    wrong += [] if seen[-1]["ended"] else ["the one that asked for too much got it"]
    wrong += [
        f"a trial held {each['held'] / total:.0%} of the card" for each in seen if total and each["held"] > SHARE * total
    ]
    if on_card and whole["held"] > plan.needed / FILLED:
        wrong.append(f"a trial held {whole['held'] / 2**30:.2f} GiB, of which the try before saw {plan.needed / 2**30:.2f}")
    lines = [
        f"auto: {fitting(plan)} trials fit, by a try: {plan}",
        f"{TRIALS} trials at once: {together:.1f} s with the start of their processes; one alone: {whole['seconds']:.1f} s",
        f"one asked for too much and ended alone: {seen[-1]['ended'].splitlines()[0][:80] if seen[-1]['ended'] else 'no'}",
        f"its neighbours' val_loss is within {max(abs(loss / expected - 1) for loss in losses):.1e} of the lone trial's",
        *(f"NOT AS IT MUST BE: {each}" for each in wrong),
    ]
    figures = {
        "together": together,
        "alone": whole["seconds"],
        "losses": losses,
        "lone": expected,
        "seen": seen,
        "tried": dataclasses.asdict(plan),
    }
    show("several trials on one card", lines, figures, computing)
    sys.exit(bool(wrong))


def loss_of(spec: RunSpec) -> float:
    """Of a run's last validation."""
    return read_history(spec.folder.child(checkpoint_names(spec.folder)[-1]))[-1]["val_loss"]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
