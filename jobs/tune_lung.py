"""Search for the best lung model overnight; judge, register and report the winner.

    python jobs/tune_lung.py                                           # phantom patients, two CPU cores, minutes
    python jobs/tune_lung.py --data PREPARED --hours 8 --trials 50 --max-epochs 30 --name NIGHT
    python jobs/tune_lung.py --data PREPARED --until 07:00 --config my_search.yaml --refit all
    ray job submit --working-dir . -- python jobs/tune_lung.py         # the same on a running cluster

Defaults come from configs/tune_lung.yaml. The same command goes on with an interrupted search.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.job.job import run
from raymed.systems.lung.options import LungOptions
from raymed.systems.options import CONFIGS, SearchOptions
from raymed.systems.search_job import search_and_conclude


@dataclass(frozen=True, kw_only=True)
class TuneLung(LungOptions, SearchOptions):
    """Options of a lung search."""


if __name__ == "__main__":
    run(TuneLung, search_and_conclude, defaults=CONFIGS / "tune_lung.yaml")
