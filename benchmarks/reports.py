"""Whether the report writer looks at pictures, and what the Mamba bridge is worth, on phantom patients.

    python benchmarks/reports.py                       # the figures of docs/log.md: minutes on a CPU core
    python benchmarks/reports.py --data PREPARED --epochs 2 --bridge_epochs 1

The settings are those that jobs/train_bridge.py and jobs/train_vlm.py take without flags, with each bridge; both stages
train with raymed's engine in this process, without Ray. Every network is judged at its best epoch, on test patients.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from in_process import Records, trained
from jsonargparse import auto_cli
from machine import process_group_of_one, show

from raymed.data.labels import LabelTable
from raymed.data.prepared import Prepared
from raymed.evaluation.findings import Findings
from raymed.job.job import parse
from raymed.systems.mamba_vlm.evaluation import Writer, evaluate_writer
from raymed.systems.mamba_vlm.guide_files import write_checkpoint
from raymed.systems.mamba_vlm.options import GUIDE, MambaOptions, TrainBridge, TrainVlm
from raymed.systems.mamba_vlm.settings import GenerationSettings
from raymed.training.spec import RunSpec

KINDS = ("mamba", "linear")


def main(
    data: str | None = None, epochs: int = 0, bridge_epochs: int = 0, seed: int = 0, storage: str = "runs/benchmark-reports"
) -> None:
    """Train with each bridge and judge.

    Args:
        data: Prepared reports; without it, those about phantom patients (their preparation starts Ray).
        epochs: Of stage 2 (0 = as many as the job).
        bridge_epochs: Of stage 1.
        seed: Of the training.
        storage: Where phantom patients are kept.
    """
    torch.set_num_threads(1)
    stages: tuple[type[MambaOptions], ...] = (TrainBridge, TrainVlm)
    first, second = (
        parse(stage, ["--storage", storage], aliases=GUIDE, script=sys.modules[stage.__module__]) for stage in stages
    )
    prepared = Prepared.open(data) if data else second.prepared()
    writers, seconds = {}, {}
    with process_group_of_one(), tempfile.TemporaryDirectory() as temporary:
        records = Records(prepared, second.spec(prepared))
        for kind in KINDS:
            started, file = time.process_time(), Path(temporary) / f"{kind}.pt"
            bridge = spec_of(first, prepared, kind, seed, bridge_epochs)
            write_checkpoint(file, train(bridge, records), 0)
            spec = spec_of(second, prepared, kind, seed, epochs)
            settings: Any = spec.recipe
            recipe = replace(settings, start=str(file))
            network = recipe.build()
            network.load_state_dict(train(replace(spec, recipe=recipe), records))
            writers[kind] = Writer(replace(recipe, start=None), network.eval())
            seconds[kind] = time.process_time() - started
    findings, generation, rows = Findings(LabelTable.open("chest_findings")), GenerationSettings(), prepared.rows("test")
    mamba, linear = (writers[kind] for kind in KINDS)
    judged = {
        "mamba": evaluate_writer(mamba, prepared, rows, findings, generation, 8, linear, seed),
        "linear": evaluate_writer(linear, prepared, rows, findings, generation, 8, None, seed),
    }
    lines = []
    for kind, result in judged.items():
        lines += [f"{kind} bridge, {seconds[kind]:.0f} s of CPU for both stages:", *(f"  {line}" for line in result.lines)]
    sizes = {split: len(prepared.rows(split)) for split in ("train", "val", "test")}
    figures = {kind: result.to_dict() | {"seconds": seconds[kind]} for kind, result in judged.items()}
    show(f"report writer on {data or 'phantom patients'}, {sizes}, seed {seed}", lines, figures)


def spec_of(options: MambaOptions, prepared: Prepared, kind: Any, seed: int, epochs: int) -> RunSpec:
    """A run as the job's options describe it, with another bridge."""
    spec = replace(options, bridge=replace(options.bridge, kind=kind), seed=seed).spec(prepared)
    return replace(spec, train=replace(spec.train, epochs=epochs or spec.train.epochs))


def train(spec: RunSpec, records: Records) -> dict[str, torch.Tensor]:
    """The weights of a run's best epoch."""
    lowest, best = float("inf"), {}
    for result, engine in trained(spec, records):
        val_loss = result["val_loss"]
        print(f"{spec.recipe.name} epoch {result['epoch']}: val_loss {val_loss:.4f}", file=sys.stderr, flush=True)
        if val_loss < lowest:
            lowest = val_loss
            best = {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}
    return best


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
