"""A checkpoint that is saved while training goes on holds what was there when it was begun, or is none."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from test_state import SETTINGS, Regression, batch
from worker_processes import run_workers

from raymed.data.micro_batches import MicroBatch
from raymed.errors import StorageError
from raymed.storage.folder import Folder
from raymed.training.agreement import Agreement
from raymed.training.checkpoint import Progress, checkpoint_names, fetch_newest, verify
from raymed.training.engine import Engine
from raymed.training.process import prepare_process
from raymed.training.saving import REST, Checkpoint, Saving, beside
from raymed.training.stall import StallGuard
from raymed.training.upload import upload

CPU = torch.device("cpu")


class Exported(Regression):
    """A recipe whose network is written, too."""

    def export(self, module: torch.nn.Module, folder: Path) -> None:
        folder.mkdir()
        torch.save(module.state_dict(), folder / "weights.pt")


def train(engine: Engine, steps: range) -> list[float]:
    for step in steps:
        engine.step([(batch(step, slot), MicroBatch(())) for slot in range(engine.worker, 2, engine.workers)], step)
    return [figures.sums["loss/loss"][0] for figures in engine.read()]


def refusing_once(part: str) -> Callable[[Path, Folder, str], None]:
    """An upload that fails at a part's first try, as where a storage does not answer for a moment."""
    refused: list[Path] = []

    def attempt(local: Path, run: Folder, name: str) -> None:
        if local.name == part and not refused:
            refused.append(local)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), run.uri)
        upload(local, run, name)

    return attempt


def work(worker: int, out: Path) -> None:
    os.environ |= {"RANK": str(worker), "LOCAL_RANK": str(worker), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    prepare_process(CPU)
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{out}/rendezvous")
    for stage in (1, 3):
        run = Folder.at(out / f"run-{stage}")
        run.make()
        settings = replace(SETTINGS, zero_stage=stage, ema=0.9)
        engine = Engine(Exported(), settings, 10, 0, CPU)  # type: ignore[arg-type]
        saving = Saving(engine, run, Agreement(run, 0.0, StallGuard(0, run, worker), lambda text: None))
        train(engine, range(2))
        name = saving.begin(2, 1, usable=True)
        saving.note(Progress(global_step=2, workers=2))
        export = engine.export(out / f"then-{stage}")  # the same, from another copy
        losses = train(engine, range(2, 4))
        dist.barrier()
        assert fetch_newest(run, out / f"early-{stage}-{worker}") is None, "a run that dies now has no checkpoint of it"
        assert saving.complete() == name and not saving.is_under_way
        dist.barrier()
        whole = fetch_newest(run, out / f"late-{stage}-{worker}")
        assert whole is not None
        again = Engine(Exported(), settings, 10, 0, CPU)  # type: ignore[arg-type]
        again.load(whole)
        assert train(again, range(2, 4)) == losses, "it holds the state of the step at which it was begun"
        export()
        if worker == 0:
            then, kept = (torch.load(folder / "weights.pt") for folder in (out / f"then-{stage}", whole / "model"))
            assert all(torch.equal(then[key], kept[key]) for key in then)

        saving.begin(4, 2, usable=False)
        saving.note(Progress(global_step=4, workers=2))
        saving.abandon()
        dist.barrier()
        assert fetch_newest(run, out / f"after-{stage}-{worker}").name == name, "what is abandoned does not count"  # type: ignore[union-attr]

        refused = saving.begin(4, 3, usable=False)
        saving.note(Progress(global_step=4, workers=2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raymed.storage.availability.PAUSE", 0.01)
            patch.setattr("raymed.training.saving.upload", refusing_once(REST))
            saving._agreement = replace(saving._agreement, minutes=1.0)
            assert saving.complete() == refused
        dist.barrier()
        again = fetch_newest(run, out / f"again-{stage}-{worker}")
        assert again is not None and again.name == refused, "a storage that did not answer at first has a whole one then"

        lost = Folder.at(out / "lost")
        absent = Saving(engine, lost, Agreement(lost, 0.0, StallGuard(0, lost, worker), lambda text: None))
        absent.begin(4, 4, usable=False)
        train(engine, range(4, 5))  # what the thread meets is told of where the run comes back to it
        absent.note(Progress(global_step=4, workers=2))
        with pytest.raises(StorageError, match="has been away"):
            absent.complete()
        assert not absent.is_under_way and not (out / "lost").exists(), "nothing is written below a mount point"
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_fails_holds_nobody_up_and_leaves_nothing(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others stand in a collective until it is gone, and its upload may take as long as a storage stays away."""
    monkeypatch.setattr("raymed.training.saving.LEAVING", 0.01)
    run = Folder.at(tmp_path)
    saving = Saving(
        SimpleNamespace(worker=0, workers=workers),  # type: ignore[arg-type]
        run,
        Agreement(run, 0.0, StallGuard(0, run, 0), lambda text: None),
    )
    (tmp_path / "step-1").mkdir()
    is_away = threading.Event()

    def write() -> dict[str, str]:
        is_away.wait()
        return {}

    saving._under_way = Checkpoint("step-1", tmp_path, beside(write), contextlib.ExitStack())
    leaving = threading.Thread(target=saving.abandon, daemon=True)
    leaving.start()
    if workers == 1:
        is_away.set()
    leaving.join(60)
    assert not leaving.is_alive() and not saving.is_under_way
    assert (tmp_path / "step-1").exists() == (workers > 1), "others may still be writing theirs"
    is_away.set()


@pytest.mark.slow
def test_a_checkpoint_saved_beside_the_training_holds_the_step_it_was_begun_at_or_does_not_exist(tmp_path: Path) -> None:
    run_workers(work, (tmp_path,), 2)
    for stage in (1, 3):
        run = Folder.at(tmp_path / f"run-{stage}")
        verify(Path(run.path) / checkpoint_names(run)[0])
