"""Search for the best lung model overnight; judge, register and report the winner.

    python jobs/tune_lung.py                                           # phantom patients, two CPU cores, minutes
    python jobs/tune_lung.py --data PREPARED --hours 8 --trials 50 --max-epochs 30 --name NIGHT
    python jobs/tune_lung.py --data PREPARED --until 07:00 --config my_search.yaml --refit all
    ray job submit --working-dir . -- python jobs/tune_lung.py         # the same on a running cluster

Defaults come from configs/tune_lung.yaml. The same command goes on with an interrupted search.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from raymed.cluster import connect
from raymed.job import Outcome, run
from raymed.lung import LungOptions
from raymed.tuning.estimate import describe
from raymed.tuning.morning import judge_night
from raymed.tuning.night import deadline
from raymed.tuning.study import Budget


@dataclass(frozen=True, kw_only=True)
class TuneLung(LungOptions):
    """Options of a lung search.

    Attributes:
        trials: Most trials.
        max_epochs: Most epochs of a trial.
        epochs: Most epochs over all trials (0 = no limit).
        hours: Most hours; trials under way then stop at their next epoch (0 = no limit).
        until: End at this time of day instead, such as 07:00.
    """

    trials: int = 20
    max_epochs: int = 10
    epochs: int = 0
    hours: float = 0.0
    until: str = ""


def main(options: TuneLung) -> Outcome:
    connect()
    prepared = options.prepared()
    options = dataclasses.replace(options, train=dataclasses.replace(options.train, epochs=options.max_epochs))
    budget = Budget(options.trials, options.epochs, deadline(options.hours, options.until))
    night = options.night(prepared, budget)
    if options.dry_run:
        return describe(night)
    study = night.run()
    return judge_night(night, study, options.refit)


if __name__ == "__main__":
    run(TuneLung, main, defaults=Path(__file__).parent.parent / "configs" / "tune_lung.yaml")
