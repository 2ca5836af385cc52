"""What a worker encodes of an epoch's plan, and tells of its validation, without a cluster."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing

from raymed.data.micro_batches import Division
from raymed.data.plan import EpochPlan
from raymed.errors import RunError
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.training.checkpoint import Progress
from raymed.training.engine import TrainSettings
from raymed.training.loop import Run
from raymed.training.preemption import Leave, Notice
from raymed.training.step_log import StepLog

PLAN = EpochPlan((((4, 7), (4,)), ((7,), (5, 4)), ((4,), (5,))), {})


class Told:
    """A recipe that gives back what it was asked, and a reader whose records are row numbers."""

    def encode(self, records: Any, training: TrainingPass) -> tuple[Any, tuple[int, ...]]:
        return records, training.repeat_counts

    def read(self, rows: Any) -> Any:
        return iter(rows)


@pytest.mark.parametrize("first_step", [0, 1])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_that_is_shown_again_is_told_so_on_any_worker_and_after_a_resume(first_step: int, workers: int) -> None:
    spec = SimpleNamespace(train=TrainSettings(micro_batch=1), seed=0, recipe=Told())
    shown = {}
    for worker in range(workers):
        readers = SimpleNamespace(training=Told())
        engine = SimpleNamespace(prepare=lambda batch: batch, device=torch.device("cpu"))
        run: Any = SimpleNamespace(spec=spec, worker=worker, division=Division(1, workers), readers=readers, engine=engine)
        for step, batches in enumerate(Run._training_batches(run, PLAN, 0, first_step), first_step):
            for place, ((rows, counts), micro) in enumerate(batches):
                if micro.counts:
                    shown[step, place * workers + worker] = list(zip(rows, counts, strict=True))
    whole = [[[(4, 0), (7, 0)], [(4, 1)]], [[(7, 1)], [(5, 0), (4, 2)]], [[(4, 3)], [(5, 1)]]]
    expected = {(step, place): pack for step, packs in enumerate(whole) for place, pack in enumerate(packs)}
    assert shown == {key: pack for key, pack in expected.items() if key[0] >= first_step}


def test_word_to_leave_comes_with_a_step_and_ends_the_run_after_it() -> None:
    """Asking took a sum over the workers of its own before every step."""
    told, steps = [Notice.NONE, Notice.JOB, Notice.NONE], list[int]()

    def step(shares: Any, global_step: int, told: list[bool]) -> list[int]:
        steps.append(global_step)
        return [*map(int, told)]

    run: Any = SimpleNamespace(
        progress=Progress(),
        stall=SimpleNamespace(step=lambda: None),
        step_log=StepLog(),
        engine=SimpleNamespace(step=step),
        notices=SimpleNamespace(newest=lambda: told.pop(0)),
        saving=SimpleNamespace(is_written=True, is_under_way=False),
        course=SimpleNamespace(checkpoint_is_due=False),
        spec=SimpleNamespace(train=TrainSettings()),
        _training_batches=lambda plan, epoch, step: iter([["a step's"]] * 3),
    )
    with pytest.raises(Leave) as left:
        Run._train_on(run, PLAN)
    assert left.value.notice == Notice.JOB and steps == [0, 1]
    assert (run.progress.step, run.progress.global_step) == (2, 2), "what was done is saved"


class Writer:
    """A recipe that writes a report of each row, and an engine that says what it wrote."""

    def encode(self, records: list[int], training: None) -> Batch:
        return Batch({}, {"loss": float(len(records))}, [str(row) for row in records])

    def predict(self, batch: Batch, judge: Any) -> dict[str, Any]:
        return {"report": [f"row {row}" for row in batch.ids], "length": np.array([len(row) for row in batch.ids])}

    def evaluate(self, predictions: dict[str, Any], records: dict[str, Any]) -> dict[str, float]:
        if predictions["report"] != [f"row {row}" for row in records["row"]]:
            raise RunError(f"{predictions['report']} are not the reports of {records['row']}")
        return {"val_loss": np.float32(len(records["row"]))}  # type: ignore[dict-item] # a checkpoint could not note it

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def read(self, rows: Any) -> Any:
        return iter(rows)


def _validate(worker: int, store: Path) -> None:
    dist.init_process_group("gloo", rank=worker, world_size=2, init_method=f"file://{store}")
    writer = Writer()
    for wrong in (0, 1):
        rows = np.arange(3, 10)
        spec = SimpleNamespace(train=TrainSettings(micro_batch=2), recipe=writer, rows=lambda *_, rows=rows: rows)
        prepared = SimpleNamespace(columns=lambda rows, _, wrong=wrong: {"row": rows + wrong})
        run: Any = SimpleNamespace(
            spec=spec,
            worker=worker,
            workers=2,
            engine=writer,
            _leave_if_told=lambda: None,
        )
        if wrong:
            with pytest.raises(RunError, match="are not the reports of"):
                Run._judge(run, writer, prepared, rows, writer)  # type: ignore[arg-type]
            continue
        metrics, predictions = Run._judge(run, writer, prepared, rows, writer)  # type: ignore[arg-type]
        assert json.dumps(metrics) == '{"val_loss": 7.0}'
        assert predictions.get("report") == ([f"row {row}" for row in range(3, 10)] if worker == 0 else None)


def test_texts_of_all_workers_are_judged_once_and_what_is_wrong_with_them_ends_the_run_on_each(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_validate, (tmp_path / "store",), nprocs=2, start_method="fork")
