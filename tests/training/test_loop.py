"""What a worker encodes of an epoch's plan, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raymed.data.micro_batches import Division
from raymed.data.plan import EpochPlan
from raymed.recipes.recipe import TrainingPass
from raymed.training.best import Best
from raymed.training.checkpoint import Progress
from raymed.training.engine import TrainSettings
from raymed.training.loop import Run

PLAN = EpochPlan((((4, 7), (4,)), ((7,), (5, 4)), ((4,), (5,))), {})


class Told:
    """A recipe that gives back what it was asked, and a reader whose records are row numbers."""

    def encode(self, records: Any, training: TrainingPass) -> tuple[Any, tuple[int, ...]]:
        return records, training.showings

    def read(self, rows: Any) -> Any:
        return iter(rows)


@pytest.mark.parametrize("first_step", [0, 1])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_that_is_shown_again_is_told_so_on_any_worker_and_after_a_resume(first_step: int, workers: int) -> None:
    spec = SimpleNamespace(train=TrainSettings(micro_batch=1), seed=0, recipe=Told())
    shown = {}
    for worker in range(workers):
        run: Any = SimpleNamespace(spec=spec, worker=worker, division=Division(1, workers), reader=Told())
        for step, batches in enumerate(Run._training_batches(run, PLAN, 0, first_step), first_step):
            for place, ((rows, counts), micro) in enumerate(batches):
                if micro.counts:
                    shown[step, place * workers + worker] = list(zip(rows, counts, strict=True))
    whole = [[[(4, 0), (7, 0)], [(4, 1)]], [[(7, 1)], [(5, 0), (4, 2)]], [[(4, 3)], [(5, 1)]]]
    expected = {(step, place): pack for step, packs in enumerate(whole) for place, pack in enumerate(packs)}
    assert shown == {key: pack for key, pack in expected.items() if key[0] >= first_step}


@pytest.mark.parametrize(("patience", "waited", "over"), [(0, 9, False), (3, 2, False), (3, 3, True), (3, 4, True)])
def test_a_run_stops_after_exactly_as_many_epochs_without_a_better_one(patience: int, waited: int, over: bool) -> None:
    spec = SimpleNamespace(train=TrainSettings(epochs=50, patience=patience), last_epoch=0)
    run: Any = SimpleNamespace(spec=spec, progress=Progress(epoch=9, best=Best(waited=waited)))
    assert Run._finished(run) is over
