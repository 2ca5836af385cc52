"""Train one lung model and record it in MLflow.

    python jobs/train_lung.py                                          # phantom patients, a small model, a CPU will do
    python jobs/train_lung.py --data PREPARED --model.preset resnet18
    python jobs/train_lung.py --data PREPARED --model.path InternVL2_5-1B --train.zero_stage 2 --workers 2

The same command goes on with an interrupted run. Judge and register the result with jobs/promote.py RUN_ID.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from raymed.job.job import Outcome, run
from raymed.systems.lung.options import LungOptions
from raymed.tuning.budget import Budget


@dataclass(frozen=True, kw_only=True)
class TrainLung(LungOptions):
    """Options of training a lung model."""

    MATTERS: ClassVar[tuple[str, ...]] = ("train.epochs", "train.zero_stage")


def main(options: TrainLung) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.run_outcome import run_outcome

    connect(start=not options.dry_run)
    prepared = options.prepared()
    search = options.open_search(prepared, Budget(trials=1))
    if options.dry_run:
        return describe(search)
    return run_outcome(search, run_search(search))


if __name__ == "__main__":
    run(TrainLung, main)
