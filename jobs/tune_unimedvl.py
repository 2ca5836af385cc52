"""Search for the best way to train UniMedVL overnight, by the validation loss; register the winner.

    python jobs/tune_unimedvl.py                                       # phantom patients, two CPU cores
    python jobs/tune_unimedvl.py --data PREPARED --model.path UniMedVL --config my_search.yaml --hours 12 --workers 8
    python jobs/vqa.py --model models:/raymed-unimedvl@champion --image PICTURE --prompt "Which lung is affected?"

Defaults come from configs/tune_unimedvl.yaml. The same command goes on with an interrupted search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.errors import UserError
from raymed.job.job import Outcome, run
from raymed.systems.options import SearchOptions, for_search
from raymed.systems.unimedvl.options import GUIDE, UniMedVLOptions


@dataclass(frozen=True, kw_only=True)
class TuneUniMedVL(UniMedVLOptions, SearchOptions):
    """Options of a UniMedVL search."""


def main(options: TuneUniMedVL) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.result import conclude_search

    if options.refit != "none":
        raise UserError("--refit is for classifiers, whose test patients say what the winner is worth: leave it out")
    connect(start=not options.dry_run)
    options = for_search(options)
    search = options.open_search(options.prepared(), options.budget)
    if options.dry_run:
        return describe(search)
    with search.alone():
        return conclude_search(search, run_search(search), alias=options.alias)


if __name__ == "__main__":
    run(TuneUniMedVL, main, defaults=Path(__file__).parent.parent / "configs" / "tune_unimedvl.yaml", aliases=GUIDE)
