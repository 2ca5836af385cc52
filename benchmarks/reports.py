"""Whether the report writer looks at pictures, and what the Mamba bridge is worth, on phantom patients.

    python benchmarks/reports.py                       # the figures of docs/log.md: minutes on a CPU core
    python benchmarks/reports.py --seeds 3             # each bridge three times, and what lies between them
    python benchmarks/reports.py --data PREPARED --epochs 2 --bridge_epochs 1

The settings are those that jobs/train_bridge.py and jobs/train_vlm.py take without flags, with each bridge; both stages
train with raymed's engine in this process, without Ray. Every network is judged at its best epoch, on test patients. How
many texts differ among patients whose reference is like no other's depends on how many patients are compared: it is told of
some at a time, drawn many times over.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from in_process import Records, trained
from jsonargparse import auto_cli
from machine import process_group_of_one, show

from raymed.data.labels import LabelTable
from raymed.data.prepared import Prepared
from raymed.evaluation import intervals
from raymed.evaluation.findings import Findings
from raymed.evaluation.text_metrics import RESAMPLES
from raymed.job.job import parse
from raymed.systems.mamba_vlm.evaluation import Writer, evaluate_writer
from raymed.systems.mamba_vlm.guide_files import write_checkpoint
from raymed.systems.mamba_vlm.options import GUIDE, MambaOptions, TrainBridge, TrainVlm
from raymed.systems.mamba_vlm.settings import GenerationSettings
from raymed.training.spec import RunSpec

KINDS = ("mamba", "linear", "attention")
AT_A_TIME, DRAWS = 63, 300  # patients whose texts are compared, and how often they are drawn


def main(
    data: str | None = None,
    epochs: int = 0,
    bridge_epochs: int = 0,
    seed: int = 0,
    seeds: int = 1,
    storage: str = "runs/benchmark-reports",
) -> None:
    """Train with each bridge and judge.

    Args:
        data: Prepared reports; without it, those about phantom patients (their preparation starts Ray).
        epochs: Of stage 2 (0 = as many as the job).
        bridge_epochs: Of stage 1.
        seed: Of the training, the first one.
        seeds: How often each bridge is trained.
        storage: Where phantom patients are kept.
    """
    torch.set_num_threads(1)
    stages: tuple[type[MambaOptions], ...] = (TrainBridge, TrainVlm)
    first, second = (
        parse(stage, ["--storage", storage], aliases=GUIDE, script=sys.modules[stage.__module__]) for stage in stages
    )
    prepared = Prepared.open(data) if data else second.prepared()
    rows, findings, generation = prepared.rows("test"), Findings(LabelTable.open("chest_findings")), GenerationSettings()
    losses: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    lines, figures = [], []
    with process_group_of_one(), tempfile.TemporaryDirectory() as temporary:
        records = Records(prepared, second.spec(prepared))
        for number in range(seed, seed + seeds):
            for kind in KINDS:
                started, file = time.process_time(), Path(temporary) / f"{kind}.pt"
                write_checkpoint(file, train(spec_of(first, prepared, kind, number, bridge_epochs), records), 0)
                spec = spec_of(second, prepared, kind, number, epochs)
                settings: Any = spec.recipe
                recipe = replace(settings, start=str(file))
                network = recipe.build()
                network.load_state_dict(train(replace(spec, recipe=recipe), records))
                seconds = time.process_time() - started
                writer = Writer(replace(recipe, start=None), network.eval())
                result = evaluate_writer(writer, prepared, rows, findings, generation, 8, None, number)
                losses[kind].append(result.texts.groupby("patient_id")["loss"].mean().to_numpy())
                share = apart(result.texts)
                lines += [
                    f"{kind} bridge, seed {number}, {seconds:.0f} s of CPU for both stages:",
                    f"  different texts of those whose reference is like no other's, {AT_A_TIME} at a time: {share:.0%}",
                    *(f"  {line}" for line in result.lines),
                ]
                figures.append(result.to_dict() | {"kind": kind, "seed": number, "seconds": seconds, "apart": share})
    for kind in KINDS[1:]:
        by_seed = np.array(losses[kind]) - np.array(losses["mamba"])  # [seeds, patients]
        lower = intervals.mean(by_seed.mean(0), RESAMPLES, seed)
        each = ", ".join(f"{difference:.3f}" for difference in by_seed.mean(1))
        lines.append(f"mamba bridge against {kind}: loss lower by {lower} over patients; of each seed {each}")
    sizes = {split: len(prepared.rows(split)) for split in ("train", "val", "test")}
    show(f"report writer on {data or 'phantom patients'}, {sizes}", lines, {"judged": figures})


def apart(texts: pd.DataFrame) -> float:
    """The share of different texts among the patients of a draw whose reference is like no other's in it: its mean."""
    shares, draws = [], np.random.default_rng(0)
    for _ in range(DRAWS):
        drawn = texts.iloc[draws.permutation(len(texts))[:AT_A_TIME]]
        alone = drawn[~drawn["reference"].duplicated(keep=False)]
        shares.append(alone["generated"].nunique() / max(1, len(alone)))
    return float(np.mean(shares))


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
