"""The tiny network on one and two workers, whose packs hold different things, under each ZeRO stage."""

import os
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from sample_records import EDIT, QUESTION, TEXT
from worker_processes import run_workers

from raymed.data.micro_batches import MicroBatch
from raymed.recipes.recipe import TrainingPass
from raymed.systems.unimedvl.memory import Counts, memory_plan
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.settings import PRESETS, TINY, UnifiedModelSettings
from raymed.training.engine import Engine
from raymed.training.means import means
from raymed.training.process import prepare_process
from raymed.training.settings import TrainSettings

CPU = torch.device("cpu")
RECIPE = UniMedVLRecipe(PRESETS[TINY])
PACKS = ([TEXT], [EDIT, QUESTION], [TEXT, TEXT], [QUESTION])  # one worker of two has neither a picture nor a target
STEPS = 3


def work(worker: int, workers: int, out: Path) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=worker, world_size=workers, init_method=f"file://{out}/rendezvous")
    results = {}
    for stage in (1, 2, 3):
        settings = TrainSettings(global_batch=4, micro_batch=1, zero_stage=stage, lr=1e-2)
        engine = Engine(RECIPE, settings, 10, 0, CPU)
        steps = []
        for step in range(STEPS):
            batches = [RECIPE.encode(pack, TrainingPass(0, step)) for pack in PACKS[worker::workers]]
            engine.step([(batch, MicroBatch(())) for batch in batches], step)
            steps.append(means(engine.read()[-1].sums) | {"norm": engine.gradient_norm})
        results[stage] = steps
    zero = engine._engine.optimizer
    optimizer = [*zero.fp32_partitioned_groups_flat]
    optimizer += [moment for state in zero.optimizer.state.values() for moment in state.values() if moment.ndim]
    results["bytes"] = {
        "weights": sum(parameter.ds_tensor.nbytes for parameter in engine.module.parameters()),
        "gradients": zero.grad_partitions_flat_buffer.nbytes,
        "optimizer": sum(tensor.nbytes for tensor in optimizer),
    }
    torch.save(results, out / f"results-{worker}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_workers_with_other_packs_and_other_stages_compute_the_same_and_memory_is_as_planned(tmp_path):
    results = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        run_workers(work, (workers, out), workers)
        results[workers] = torch.load(out / "results-0.pt")
    expected = results[1][1]
    assert expected[0]["ce"] > expected[-1]["ce"]
    for workers, stage in product((1, 2), (1, 2, 3)):
        for step, reference in zip(results[workers][stage], expected, strict=True):
            assert step == pytest.approx(reference, rel=2e-4), f"{workers} workers under ZeRO {stage}"

    counts = Counts.of(PRESETS[TINY], UnifiedModelSettings())
    for workers in (1, 2):
        plan = memory_plan(PRESETS[TINY], counts, workers, tokens=256, weight_bytes=4, averaged=False)
        for part, measured in results[workers]["bytes"].items():
            assert getattr(plan, part) == pytest.approx(measured, rel=0.1), f"{part} of {workers} workers"
