"""What a worker encodes of an epoch's plan, and what it does when it is told to leave, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch.multiprocessing

from raymed.data.micro_batches import Division
from raymed.data.plan import EpochPlan
from raymed.recipes.recipe import TrainingPass
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
