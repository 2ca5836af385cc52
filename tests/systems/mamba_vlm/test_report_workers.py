"""Both stages on one and two workers, whose reports have other lengths, under each ZeRO stage."""

import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from report_records import SIZE, records
from worker_processes import run_workers

from raymed.data.image import ImageSettings
from raymed.data.micro_batches import MicroBatch
from raymed.recipes.recipe import TrainingPass
from raymed.systems.mamba_vlm.bridge_recipe import BridgeRecipe
from raymed.systems.mamba_vlm.guide_files import OPTIMIZER, write_checkpoint
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import BridgeSettings, InteractionSettings, LanguageSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading
from raymed.training.engine import Engine
from raymed.training.means import means
from raymed.training.process import prepare_process
from raymed.training.settings import TrainSettings
from raymed.training.state import read_state

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


def carry_on(worker: int, out: Path) -> None:
    """Train, write the guide's file, begin with it under each ZeRO stage, and go on from a checkpoint of that."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{out}/rendezvous")
    recipe, results = RECIPES["frozen"], {}
    first = engine_of(recipe, 1)
    train(first, range(STEPS))
    first.save(out / "first")()
    state = read_state(out / "first")
    moments = {"exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq, "step": state.step}
    write_checkpoint(out / "last.pt", state.module, state.step, **{OPTIMIZER: moments})
    following = replace(recipe, start=str(out / "last.pt"))
    for stage in (1, 2, 3):
        engine = engine_of(following, stage)
        engine.save(out / f"begun-{stage}")()
        train(engine, range(1))
        engine.save(out / f"after-{stage}")()
        results[stage] = [steps_of(engine)]
        for other in (stage, 3 if stage == 1 else 1):
            again = engine_of(following, other)
            again.load(out / f"after-{stage}")
            results[stage].append(steps_of(again))
    torch.save(results, out / "results.pt")
    dist.destroy_process_group()


def engine_of(recipe: ReportRecipe, stage: int) -> Engine:
    return Engine(recipe, TrainSettings(global_batch=4, micro_batch=1, zero_stage=stage, lr=1e-3), 10, 0, CPU)


def train(engine: Engine, steps: range) -> None:
    for step in steps:
        engine.step([(engine.recipe.encode([record], TrainingPass(0, step)), MicroBatch(())) for record in records(4)], step)
        engine.read()


def steps_of(engine: Engine) -> set[float]:
    """How many steps AdamW counts."""
    return {float(state["step"]) for state in engine._engine.optimizer.optimizer.state.values()}


def interrupt(worker: int, out: Path) -> None:
    """Train in one go, and once more with a new engine from a checkpoint in the middle."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{out}/rendezvous")
    results = {}
    for name, recipe in RECIPES.items():
        whole, begun = engine_of(recipe, 1), engine_of(recipe, 1)
        train(whole, range(2 * STEPS))
        train(begun, range(STEPS))
        begun.save(out / name)()
        again = engine_of(recipe, 1)
        again.load(out / name)
        train(again, range(STEPS, 2 * STEPS))
        results[name] = [{key: value.clone() for key, value in each.module.state_dict().items()} for each in (whole, again)]
    torch.save(results, out / "results.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_bit_equal_in_both_stages(tmp_path: Path) -> None:
    run_workers(interrupt, (tmp_path,))
    for name, (whole, again) in torch.load(tmp_path / "results.pt").items():
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[key], again[key]) for key in whole), name


@pytest.mark.slow
def test_training_that_is_continued_has_the_optimizers_moments_back(tmp_path: Path) -> None:
    run_workers(carry_on, (tmp_path,))
    first, results = read_state(tmp_path / "first"), torch.load(tmp_path / "results.pt")
    for stage in (1, 2, 3):
        begun = read_state(tmp_path / f"begun-{stage}")
        assert begun.step == 0, "its schedule is its own"
        for moment in ("exp_avg", "exp_avg_sq"):
            here, there = getattr(begun, moment), getattr(first, moment)
            assert here.keys() == there.keys()
            assert all(torch.equal(here[name], there[name]) for name in here)
        assert results[stage] == [{STEPS + 1.0}] * 3, "also after an interruption, under this ZeRO stage or another"


@pytest.mark.slow
def test_workers_and_zero_stages_compute_the_same_losses(tmp_path: Path) -> None:
    results = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        run_workers(work, (workers, out), workers)
        results[workers] = torch.load(out / "results-0.pt")
    for name in RECIPES:
        expected = results[1][name, 1]
        assert expected[0]["loss"] > expected[-1]["loss"]
        for workers, stage in product((1, 2), (1, 2, 3)):
            for step, reference in zip(results[workers][name, stage], expected, strict=True):
                assert step == pytest.approx(reference, rel=5e-4), f"{name}: {workers} workers under ZeRO {stage}"
