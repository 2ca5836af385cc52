"""What DeepSpeed is told to keep out of a GPU's memory, read and run by itself. There is no GPU here."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from worker_processes import run_workers

from raymed.compat.deepspeed import LITTLE
from raymed.errors import UserError
from raymed.models import precision
from raymed.training.process import prepare_process
from raymed.training.settings import TrainSettings
from raymed.training.zero import check_offload, clip_in_update, deepspeed_config, own_disk, sum_gradients_in_place

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"offload": "nvme"}, r"nvme is for train\.zero_stage 3"),
        ({"offload": "nvme", "zero_stage": 3}, r"needs train\.offload_path"),
        ({"offload": "nvme", "zero_stage": 3, "offload_path": "/nvme", "ema": 0.9}, "averages weights that"),
        ({"offload": "cpu", "offload_path": "/nvme"}, r"/nvme is for train\.offload nvme"),
    ],
)
def test_an_offload_that_makes_no_sense_is_refused_before_any_work(settings: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        TrainSettings(**settings)


@pytest.mark.slow
def test_a_machine_that_cannot_offload_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes load off a GPU's memory, and there is none"):
        check_offload(TrainSettings(offload="cpu"), CPU)
    check_offload(TrainSettings(offload="cpu"), CUDA)
    with pytest.raises(UserError, match="is no folder on a worker's machine"):
        check_offload(TrainSettings(offload="nvme", zero_stage=3, offload_path=str(tmp_path / "disk")), CUDA)
    from deepspeed.ops.op_builder import AsyncIOBuilder

    there = TrainSettings(offload="nvme", zero_stage=3, offload_path=str(tmp_path))
    if AsyncIOBuilder().is_compatible(verbose=False):
        check_offload(there, CUDA)
    else:
        with pytest.raises(UserError, match=r"needs DeepSpeed's async_io.*libaio"):
            check_offload(there, CUDA)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), [*product((1, 2, 3), ("none", "cpu")), (3, "nvme")])
def test_deepspeed_reads_what_it_is_told_as_it_was_meant(stage: int, offload: str) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    settings = TrainSettings(
        precision="fp32", zero_stage=stage, offload=offload, offload_path="/disk" if offload == "nvme" else ""
    )  # type: ignore[arg-type]
    read = DeepSpeedZeroConfig(**deepspeed_config(settings, CUDA, 2, 1000)["zero_optimization"])
    assert read.stage == stage
    assert (read.offload_optimizer is None) == (offload == "none")
    assert (read.offload_param is not None) == (offload != "none" and stage == 3)
    for part in filter(None, (read.offload_optimizer, read.offload_param)):
        assert part.device == offload and str(part.nvme_path) == ("/disk" if offload == "nvme" else "None")


@pytest.mark.slow
def test_steps_are_the_same_where_the_optimizer_is_offloaded() -> None:
    """DeepSpeed gets a GPU's configuration and computes on the CPU; its own optimizer for CPUs would have to be compiled."""
    run_workers(_step)


def _step(_: int) -> None:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    import deepspeed

    results = {}
    for stage, offload in product((1, 2, 3), ("none", "cpu")):
        torch.manual_seed(0)
        network = nn.Linear(4, 4)
        settings = TrainSettings(precision="fp32", zero_stage=stage, offload=offload)  # type: ignore[arg-type]
        engine, optimizer, *_ = deepspeed.initialize(
            model=network, model_parameters=network.parameters(), config=deepspeed_config(settings, CUDA, 1, 20)
        )
        assert type(optimizer.optimizer) is torch.optim.AdamW
        for _ in range(3):
            loss = engine(torch.ones(2, 4)).square().sum()
            engine.backward(loss)
            engine.step()
        results[stage, offload] = float(loss)
    for stage in (1, 2, 3):
        assert results[stage, "cpu"] == pytest.approx(results[stage, "none"], rel=1e-6), results


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_sums_and_gathers_of_our_own_leave_the_weights_that_deepspeed_s_do_bit_for_bit(workers: int, tmp_path: Path) -> None:
    run_workers(_sum, (tmp_path, workers), workers=workers)


def _sum(worker: int, out: Path, workers: int) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=worker, world_size=workers, init_method=f"file://{out}/rendezvous")
    import deepspeed
    from deepspeed.runtime.zero import stage_1_and_2

    usual = stage_1_and_2.all_gather_dp_groups
    prepare_process(CPU)
    gathers = {False: usual, True: stage_1_and_2.all_gather_dp_groups}
    assert gathers[True] is not usual
    for width in (5, 900):  # weights that are gathered all at once, and group by group
        results = []
        for ours in (False, True):
            stage_1_and_2.all_gather_dp_groups = gathers[ours]
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(7, width), nn.Tanh(), nn.Linear(width, width))
            assert (4 * width * width / workers > LITTLE) == (width == 900)
            groups = [{"params": [each for each in network.parameters() if each.dim() == dims]} for dims in (1, 2)]
            config = deepspeed_config(TrainSettings(precision="fp32", lr=0.05), CPU, workers, width * (width + 9))
            engine, zero, *_ = deepspeed.initialize(model=network, model_parameters=groups, config=config)
            if ours:
                sum_gradients_in_place(zero, workers)
            for step in range(3):
                for micro in range(2):
                    x = torch.linspace(-1, 1 + worker, 14).view(2, 7) * (1 + step + micro)
                    engine.backward(engine(x).square().mean(), scale_wrt_gas=False)
                engine.step()
            results.append([each.detach().clone() for each in network.parameters()])
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other), (width, (one - other).abs().max())


@pytest.mark.slow
def test_what_is_clipped_in_the_update_takes_the_steps_that_deepspeed_does(tmp_path: Path) -> None:
    """On two workers; with a limit that some gradients exceed, and without."""
    run_workers(_clip, (tmp_path,), workers=2)


def _clip(worker: int, out: Path) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{out}/rendezvous")
    import deepspeed

    precision.has_bf16 = lambda device: True
    for stage, kind, clip in product((1, 2), ("fp32", "bf16", "amp"), (0.0, 2.0)):
        results = []
        for ours in (False, True):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3))
            settings = TrainSettings(precision=kind, zero_stage=stage, clip=clip, lr=0.05)  # type: ignore[arg-type]
            config = deepspeed_config(settings, CUDA, 1, 30)
            groups = [{"params": [each]} for each in network.parameters()]
            engine, zero, *_ = deepspeed.initialize(model=network, model_parameters=groups, config=config)
            if ours:
                clip_in_update(zero)
            norms = []
            for step in range(4):
                x = torch.full((2, 5), 1.0 + step + worker, dtype=torch.bfloat16 if kind == "bf16" else None)
                engine.backward(engine(x).float().square().sum() / (1 + 2 * step))
                engine.step()
                norms.append(float(engine.get_global_grad_norm()))
            if ours:  # a run that goes on on a card
                engine.save_checkpoint(str(out), tag=f"{stage}-{kind}-{clip}")
                engine.load_checkpoint(str(out), tag=f"{stage}-{kind}-{clip}")
            results.append((norms, [flat.detach().clone() for flat in zero.single_partition_of_fp32_groups]))
        (norms, weights), (again, others) = results
        assert again == pytest.approx(norms, rel=1e-6), (stage, kind, clip)
        assert max(norms) > 2 > min(norms), norms
        torch.testing.assert_close(others, weights, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_runs_on_one_disk_have_a_folder_each_which_goes_with_the_run_or_after_its_process_was_killed(tmp_path: Path) -> None:
    """DeepSpeed tells files apart by a worker's rank: those of two runs of one worker had the same names."""
    settings = TrainSettings(offload="nvme", zero_stage=3, offload_path=str(tmp_path))
    (tmp_path / "of-somebody-else").mkdir()
    killed = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    left = Path(killed.stdout.readline().strip())
    with own_disk(settings) as first:
        assert left.is_dir(), "its process lives"
        killed.kill()
        killed.wait()
        with own_disk(settings) as second:
            folders = [Path(each.offload_path) for each in (first, second)]
            assert len({*folders}) == 2 and all(folder.parent == tmp_path for folder in folders)
            assert dataclasses.replace(second, offload_path=str(tmp_path)) == settings
            assert folders[0].is_dir() and not left.exists()
            (folders[1] / "zero_stage_3").mkdir()  # DeepSpeed's
    assert [each.name for each in tmp_path.iterdir()] == ["of-somebody-else"]


@pytest.mark.parametrize("settings", [TrainSettings(), TrainSettings(offload="nvme", zero_stage=3, offload_path="/nowhere")])
def test_a_run_that_offloads_to_no_disk_of_this_machine_makes_no_folder(settings: TrainSettings) -> None:
    with own_disk(settings) as same:
        assert same == settings


HOLDS = """
import sys, time
from raymed.training.settings import TrainSettings
from raymed.training.zero import own_disk
with own_disk(TrainSettings(offload="nvme", zero_stage=3, offload_path=sys.argv[1])) as settings:
    print(settings.offload_path, flush=True)
    time.sleep(600)
"""
