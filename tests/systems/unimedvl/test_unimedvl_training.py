"""Promise 4 where answers and pictures are learned in packs: dropped conditions, times and noise included."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from sample_records import DRAWING, EDIT, QUESTION, TEXT
from worker_processes import run_workers

from raymed.data.micro_batches import MicroBatch
from raymed.data.record import Record
from raymed.recipes.recipe import TrainingPass
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.sequence import CondDropout
from raymed.systems.unimedvl.settings import PRESETS, TINY
from raymed.training.engine import Engine
from raymed.training.means import means
from raymed.training.process import prepare_process
from raymed.training.settings import TrainSettings

CPU = torch.device("cpu")
RECIPE = UniMedVLRecipe(PRESETS[TINY], dropout=CondDropout(0.5, 0.5, 0.5))
SETTINGS = TrainSettings(global_batch=2, micro_batch=1, lr=1e-2, ema=0.9)
EPOCH, LAST = 4, 8  # steps of an epoch, and in all


def packs(step: int) -> list[list[Record]]:
    """Two packs of a step; ids decide what is drawn of a record."""
    named = [replace(record, id=f"{record.id}-{step % EPOCH}") for record in (QUESTION, EDIT, TEXT, DRAWING)]
    return [named[:2], named[2:]] if step % 2 else [named[1:], named[:1]]


def work(_: int, start: Path | None, first: int, end: Path, kept: int) -> None:
    """Go on at step `first` from the checkpoint `start`, leave one at step `kept`, and export the network at the last."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{end}.rendezvous")
    engine = Engine(RECIPE, SETTINGS, LAST, 0, CPU)
    if start is not None:
        engine.load(start)
    figures = []
    for step in range(first, LAST):
        if step == kept:
            engine.save(end / "kept")()
        shares = [RECIPE.encode(pack, TrainingPass(0, step // EPOCH)) for pack in packs(step)]
        engine.step([(batch, MicroBatch(())) for batch in shares], step)
        figures.append(means(engine.read()[-1].sums) | {"norm": engine.gradient_norm, "lr": engine.lr})
    engine.export(end / "model")()
    torch.save(figures, end / "figures.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_an_interrupted_run_computes_bit_for_bit_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """It goes on in the middle of the second epoch."""
    whole, cut, middle = tmp_path / "whole", tmp_path / "cut", EPOCH + 2
    for start, first, end in ((None, 0, whole), (whole / "kept", middle, cut)):
        end.mkdir()
        run_workers(work, (start, first, end, middle))
    once, again = (torch.load(folder / "figures.pt") for folder in (whole, cut))
    assert once[middle:] == again and {"ce", "mse", "norm", "lr"} <= set(again[0])
    weights, resumed = (load_file(folder / "model" / "ema.safetensors") for folder in (whole, cut))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights), "averaged weights included"
