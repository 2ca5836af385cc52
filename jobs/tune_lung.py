"""Search for the best lung model overnight; judge, register and report the winner.

    python jobs/tune_lung.py                                           # phantom patients, two CPU cores, minutes
    python jobs/tune_lung.py --data PREPARED --hours 8 --trials 50 --max-epochs 30 --name NIGHT
    python jobs/tune_lung.py --data PREPARED --until 07:00 --config my_search.yaml --refit all
    ray job submit --working-dir . -- python jobs/tune_lung.py         # the same on a running cluster

Defaults come from configs/tune_lung.yaml. The same command goes on with an interrupted search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.job.job import Outcome, run
from raymed.systems.lung.options import LungOptions
from raymed.systems.options import SearchOptions, for_search


@dataclass(frozen=True, kw_only=True)
class TuneLung(LungOptions, SearchOptions):
    """Options of a lung search."""


def main(options: TuneLung) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.result import conclude_search

    connect(start=not options.dry_run)
    options = for_search(options)
    search = options.open_search(options.prepared(), options.budget)
    if options.dry_run:
        return describe(search)
    with search.alone():
        return conclude_search(search, run_search(search), options.refit, options.alias)


if __name__ == "__main__":
    run(TuneLung, main, defaults=Path(__file__).parent.parent / "configs" / "tune_lung.yaml")
