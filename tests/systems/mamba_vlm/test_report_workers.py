"""Both stages on one and two workers, whose reports have other lengths, under each ZeRO stage."""

import multiprocessing
import os
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from report_records import SIZE, records

from raymed.data.image import ImageSettings
from raymed.data.micro_batches import MicroBatch
from raymed.recipes.recipe import TrainingPass
from raymed.systems.mamba_vlm.bridge_recipe import BridgeRecipe
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import BridgeSettings, InteractionSettings, LanguageSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading
from raymed.training.engine import Engine, prepare_process
from raymed.training.means import means
from raymed.training.settings import TrainSettings

CPU = torch.device("cpu")
READING = Reading(ImageSettings(size=SIZE))
VISION, BRIDGE = VisionSettings(preset="tiny", output_stage=2, target_side=8), BridgeSettings(max_visual_tokens=16)
RECIPES = {
    "stage 1": BridgeRecipe(READING, vision=VISION, bridge=BRIDGE),
    "stage 2": ReportRecipe(READING, vision=VISION, bridge=BRIDGE, cmi=InteractionSettings(use=True)),
    "frozen": ReportRecipe(READING, vision=VISION, bridge=BRIDGE, language=LanguageSettings(freeze=True)),
}
STEPS = 3


def work(worker: int, workers: int, out: Path) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=worker, world_size=workers, init_method=f"file://{out}/rendezvous")
    results = {}
    for (name, recipe), stage in product(RECIPES.items(), (1, 2, 3)):
        settings = TrainSettings(global_batch=4, micro_batch=1, zero_stage=stage, lr=1e-3)
        engine = Engine(recipe, settings, 10, 0, CPU)
        steps = []
        for step in range(STEPS):
            batches = [recipe.encode([record], TrainingPass(0, step)) for record in records(4)[worker::workers]]
            engine.step([(batch, MicroBatch(())) for batch in batches], step)
            steps.append(means(engine.read()[-1].sums) | {"norm": engine.gradient_norm})
        results[name, stage] = steps
    torch.save(results, out / f"results-{worker}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_workers_and_zero_stages_compute_the_same_losses(tmp_path: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29524", "OMP_NUM_THREADS": "1"}
    multiprocessing.set_forkserver_preload(["raymed.training.engine", "deepspeed", "raymed.systems.mamba_vlm.network"])
    results = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        torch.multiprocessing.start_processes(work, (workers, out), workers, start_method="forkserver")
        results[workers] = torch.load(out / "results-0.pt")
    for name in RECIPES:
        expected = results[1][name, 1]
        assert expected[0]["loss"] > expected[-1]["loss"]
        for workers, stage in product((1, 2), (1, 2, 3)):
            for step, reference in zip(results[workers][name, stage], expected, strict=True):
                assert step == pytest.approx(reference, rel=5e-4), f"{name}: {workers} workers under ZeRO {stage}"
