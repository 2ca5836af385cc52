"""Search for the best way to pretrain overnight, by the validation loss; register the winner.

    python jobs/tune_vitp.py                                           # notes about phantom patients, two CPU cores
    python jobs/tune_vitp.py --data PREPARED --model.path InternVL2_5-1B --config my_search.yaml --hours 12 --workers 8
    python jobs/extract_vit.py --model models:/raymed-vitp@champion --out VIT

Defaults come from configs/tune_vitp.yaml. The same command goes on with an interrupted search. The validation loss compares
ways to train, not backbones: what a ViT is worth shows in the task it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.errors import UserError
from raymed.job.job import Outcome, run
from raymed.systems.options import SearchOptions, for_search
from raymed.systems.vitp.options import VitpOptions


@dataclass(frozen=True, kw_only=True)
class TuneVitp(VitpOptions, SearchOptions):
    """Options of a pretraining search."""


def main(options: TuneVitp) -> Outcome:
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
    run(TuneVitp, main, defaults=Path(__file__).parent.parent / "configs" / "tune_vitp.yaml")
