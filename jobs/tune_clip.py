"""Search for the best CLIP classifier overnight; judge, register and report the winner.

    python jobs/tune_clip.py                                           # phantom patients, small towers, two CPU cores
    python jobs/tune_clip.py --data-dir IMAGES --image-encoder resnet18 --text-encoder BERT --hours 8 --trials 50
    python jobs/tune_clip.py --data-dir IMAGES --patients patients.csv --config my_search.yaml --refit all

IMAGES holds one folder of images for each class. Defaults come from configs/tune_clip.yaml. The same command goes on with an
interrupted search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.job.job import Outcome, run
from raymed.systems.clip.options import GUIDE, ClipOptions
from raymed.systems.options import SearchOptions, for_search

SEARCH_GUIDE = {name: alias for name, alias in GUIDE.items() if name != "epochs"}  # here --epochs are those of all trials


@dataclass(frozen=True, kw_only=True)
class TuneClip(ClipOptions, SearchOptions):
    """Options of a CLIP search.

    Attributes:
        split: Shares of train/val/test patients: the winner is judged once on test.
    """

    split: str = "75/15/15"


def main(options: TuneClip) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.result import conclude_search

    connect(start=not options.dry_run)
    options = for_search(options).small()
    prepared = options.prepared()
    options.log_data_summary(prepared)
    search = options.open_search(prepared, options.budget)
    if options.dry_run:
        return describe(search)
    with search.alone():
        return conclude_search(search, run_search(search), options.refit, options.alias)


if __name__ == "__main__":
    run(TuneClip, main, defaults=Path(__file__).parent.parent / "configs" / "tune_clip.yaml", aliases=SEARCH_GUIDE)
