"""Time per step inside raymed's loop, against a bare DeepSpeed loop on tensors that lie ready.

    python benchmarks/overhead.py                                             # the figures of docs/log.md: 10 minutes
    python benchmarks/overhead.py --preset tiny --patients 12 --size 28 --source_size 64 --rounds 1 --epochs 2   # to try it

Ours is a whole run under Ray Train on one worker: slices staged in the object store, encoded and augmented while the step
before is computed. The bare loop is one process with every batch already in memory as the network takes it. Both have one
thread for computing and the same network, optimizer and DeepSpeed configuration. Runs of the two take turns, and a ratio
comes from neighbours. The first epoch of a run warms up and is left out.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from machine import process_group_of_one, show

from raymed.cluster.connection import connect
from raymed.data.phantom import PhantomSettings
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.data.stream import stage
from raymed.models.settings import ModelSettings
from raymed.recipes.recipe import TrainingPass
from raymed.storage.folder import Folder
from raymed.systems.lung.recipe import LungRecipe
from raymed.systems.options import prepare_phantoms
from raymed.training.checkpoint import Progress, fetch_newest
from raymed.training.fit import fit, resources
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.zero import deepspeed_config


def main(
    folder: str = "runs/benchmark-overhead",
    preset: str = "resnet18",
    patients: int = 24,
    source_size: int = 256,
    size: int = 112,
    batch: int = 16,
    epochs: int = 4,
    rounds: int = 3,
) -> None:
    """Train in both ways, in turns.

    Args:
        folder: Where phantom patients and runs are kept.
        preset: The network.
        patients: How many, of 30 to 35 slices.
        source_size: Side of the PNGs, in pixels.
        size: Side of what the model takes.
        batch: Slices of a step.
        epochs: Epochs of each run.
        rounds: Runs of each way.
    """
    connect()
    storage = Folder.at(folder)
    prepared = prepare_phantoms(storage, PhantomSettings(patients=patients, size=source_size), size)
    recipe = LungRecipe.for_data(prepared.labels, size, ModelSettings(preset=preset))
    train = TrainSettings(epochs=epochs, global_batch=batch, micro_batch=batch, norm_group=batch)
    template = RunSpec("", storage.uri, prepared.folder.uri, recipe, train, SliceSettings(choice="all"))
    staged = stage(prepared, template.all_rows(prepared))
    steps = len(template.plan(prepared, 0).batches)
    ours, bare, waits = [], [], []
    for turn in range(rounds):
        spec = dataclasses.replace(template, name=f"run-{turn}")
        storage.delete(spec.name)
        fit(spec, staged, resources(1, 1))
        history = history_of(spec)[1:]
        ours.append(statistics.median(epoch["seconds"] for epoch in history) / steps)
        waits.append(statistics.median(epoch["data_wait"] for epoch in history))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            bare.append(statistics.median(process.submit(bare_epochs, spec).result()[1:]) / steps)
    ratios = [our / other for our, other in zip(ours, bare, strict=True)]
    figures = {
        "steps_per_epoch": steps,
        "ours": ours,
        "bare": bare,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "data_wait": statistics.median(waits),
    }
    lines = [
        f"ours {statistics.median(ours) * 1000:.1f} ms a step, bare {statistics.median(bare) * 1000:.1f} ms; "
        f"ratio {figures['ratio']:.3f} (rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)})",
        f"waiting for data: {figures['data_wait']:.2%} of the step",
    ]
    show(f"{preset} at {size} pixels, batches of {batch}, {steps} steps an epoch", lines, figures)


def history_of(spec: RunSpec) -> list[dict[str, float]]:
    """The metrics of each epoch of a finished run."""
    with tempfile.TemporaryDirectory() as temporary:
        newest = fetch_newest(spec.folder, Path(temporary))
        assert newest is not None
        return Progress.read(newest).history


def bare_epochs(spec: RunSpec) -> list[float]:
    """Seconds of each epoch of a loop with nothing around it, in a process of its own."""
    torch.set_num_threads(1)
    with process_group_of_one():
        return time_bare_loop(spec)


def time_bare_loop(spec: RunSpec) -> list[float]:
    import deepspeed

    torch.manual_seed(spec.seed)
    module = spec.recipe.build()
    groups = [
        {"params": group.parameters, "lr": spec.train.lr, "weight_decay": spec.train.weight_decay if group.decay else 0.0}
        for group in spec.recipe.groups(module)
    ]
    trained = sum(parameter.numel() for group in spec.recipe.groups(module) for parameter in group.parameters)
    config = deepspeed_config(spec.train, torch.device("cpu"), workers=1, trained=trained)
    engine, *_ = deepspeed.initialize(model=module, model_parameters=groups, config=config)
    prepared, where, seconds = Prepared.open(spec.data), TrainingPass(spec.seed, 0), []
    batches = [
        spec.recipe.encode(prepared.read([row for pack in each for row in pack]), where).to(torch.device("cpu")).tensors
        for each in spec.plan(prepared, 0).batches
    ]
    module.train()
    for _ in range(spec.train.epochs):
        started = time.perf_counter()
        for batch in batches:
            logits = engine(batch["pixels"])["logits"]
            engine.backward(F.cross_entropy(logits, batch["labels"], label_smoothing=0.01))
            engine.step()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
