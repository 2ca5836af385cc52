"""A run that ends while a checkpoint is on its way goes on from a whole one and computes the same; without a cluster."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_prepared
from device_reads import alone
from worker_processes import preload

from raymed.data.prepared import Prepared
from raymed.data.stream import ShardReader
from raymed.storage.folder import Folder
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training import saving
from raymed.training.checkpoint import Progress, checkpoint_names, fetch_newest, step_of, verify
from raymed.training.loop import SAVED, train
from raymed.training.preemption import Preempted
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.worker_context import WorkerContext

# 5 steps an epoch, of which the fifth is saved with the validation; a checkpoint takes two uploads, of the state and of what
# makes it one.
TRAIN = TrainSettings(epochs=2, global_batch=16, micro_batch=5, norm_group=5, lr=3e-3, checkpoint_steps=1, stall_minutes=0)
UPLOADS = 2 * 5 * 2


@dataclass(frozen=True)
class FromShards:
    """A run's rows, read where they are needed."""

    data: str

    def open(self) -> ShardReader:
        return ShardReader(Prepared.open(self.data))


def run(spec: RunSpec, reports: Path, upload_of_death: float, leave_after: int) -> None:
    """Train in this process, which dies within an upload, or is told to leave after so many steps.

    Args:
        upload_of_death: its number, from 1; with a half before it, else after it.
    """
    alone()
    spec.folder.make()
    upload, uploads = saving.upload, itertools.count(1)

    def deadly(local: Path, folder: Folder, name: str) -> None:
        number = next(uploads)
        if number - 0.5 == upload_of_death:
            os.kill(os.getpid(), signal.SIGKILL)
        upload(local, folder, name)
        if number == upload_of_death:
            os.kill(os.getpid(), signal.SIGKILL)

    def report(metrics: dict[str, Any]) -> None:
        if SAVED in metrics:
            verify(Path(spec.folder.path) / metrics[SAVED])
        with reports.open("a") as file:
            file.write(
                json.dumps({key: value for key, value in metrics.items() if isinstance(value, float | int | str)}) + "\n"
            )

    saving.upload = deadly
    asked = itertools.count()
    context = WorkerContext(0, 1, 0, 1, torch.device("cpu"), report, lambda: next(asked) >= leave_after)
    try:
        train(context, spec, FromShards(spec.data), None, False)  # type: ignore[arg-type]
    except Preempted:
        raise SystemExit(7) from None


def start(spec: RunSpec, reports: Path, upload_of_death: float = 0, leave_after: int = 1000) -> int | None:
    preload()
    forks = multiprocessing.get_context("forkserver")
    process = forks.Process(target=run, args=(spec, reports, upload_of_death, leave_after))
    process.start()
    process.join()
    return process.exitcode


def losses(spec: RunSpec, into: Path) -> list[tuple[float, ...]]:
    newest = fetch_newest(spec.folder, into)
    assert newest is not None
    return [(each["val_loss"], each["train_loss"]) for each in Progress.read(newest).history]


@pytest.mark.slow
def test_a_run_that_dies_or_leaves_while_a_checkpoint_is_on_its_way_computes_the_same(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "data")
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    whole, cut = (RunSpec(name, str(tmp_path), prepared.folder.uri, recipe, TRAIN) for name in ("whole", "cut"))
    assert start(whole, tmp_path / "whole.jsonl") == 0
    expected = losses(whole, tmp_path / "fetched")
    saved = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines() if SAVED in json.loads(line)]
    assert len({each[SAVED] for each in saved}) == len(saved) == UPLOADS / 2
    assert [each["global_step"] for each in saved] == sorted(each["global_step"] for each in saved)
    assert [each["epoch"] for each in saved if "val_loss" in each] == [1, 2]

    # between the first one's state and the list, and when all of the second is there but nobody was told
    for number in (1, 4):
        assert start(cut, tmp_path / "cut.jsonl", number) == -signal.SIGKILL, number
    before = len((tmp_path / "cut.jsonl").read_text().splitlines())
    assert start(cut, tmp_path / "cut.jsonl", leave_after=2) == 7
    verify(Path(cut.folder.path) / checkpoint_names(cut.folder)[-1])
    told = [json.loads(line) for line in (tmp_path / "cut.jsonl").read_text().splitlines()[before:]]
    saved = [step_of(each[SAVED]) for each in told if SAVED in each]
    assert told[-1]["global_step"] == saved[-1] + 1, "it leaves with the one that was under way, and writes no other"
    assert start(cut, tmp_path / "cut.jsonl") == 0
    assert losses(cut, tmp_path / "again") == expected
