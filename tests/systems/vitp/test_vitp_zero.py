"""Pretraining under each ZeRO stage, whole and with the language model frozen: the same losses on one worker and on two."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conversations import MIXED, SIZE
from worker_processes import run_workers

from raymed.data.micro_batches import MicroBatch
from raymed.models.settings import ModelSettings
from raymed.recipes.recipe import TrainingPass
from raymed.systems.vitp.recipe import VitpRecipe
from raymed.training.engine import Engine
from raymed.training.means import means
from raymed.training.process import prepare_process
from raymed.training.settings import TrainSettings

CPU, STAGES, STEPS = torch.device("cpu"), (1, 2, 3), 2
FROZEN = (False, True)


def _train(worker: int, workers: int, out: Path) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=worker, world_size=workers, init_method=f"file://{out}/rendezvous-{workers}")
    results = {}
    for frozen, stage in product(FROZEN, STAGES):
        recipe = VitpRecipe(SIZE, model=ModelSettings(preset="internvl-tiny", freeze_language=frozen))
        engine = Engine(recipe, TrainSettings(global_batch=4, micro_batch=1, zero_stage=stage, lr=3e-3), 10, 0, CPU)
        steps = []
        for step in range(STEPS):
            batches = [recipe.encode([record], TrainingPass(0, step)) for record in MIXED[worker::workers]]
            engine.step([(batch, MicroBatch(())) for batch in batches], step)
            steps.append(means(engine.read()[-1].sums) | {"norm": engine.gradient_norm})
        results[frozen, stage] = steps
    if worker == 0:
        torch.save(results, out / f"results-{workers}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_zero_stages_and_workers_compute_the_same_losses_also_with_the_language_model_frozen(tmp_path: Path) -> None:
    for workers in (1, 2):
        run_workers(_train, (workers, tmp_path), workers)
    results = {workers: torch.load(tmp_path / f"results-{workers}.pt") for workers in (1, 2)}
    for frozen, stage, workers in product(FROZEN, STAGES, (1, 2)):
        for step, reference in zip(results[workers][frozen, stage], results[1][frozen, 1], strict=True):
            assert step == pytest.approx(reference, rel=2e-4), f"{workers} workers under ZeRO {stage}, frozen: {frozen}"
    assert results[1][True, 1][0]["norm"] < results[1][False, 1][0]["norm"], "fewer parameters have gradients"
