"""Search for the best way to pretrain overnight, by the validation loss; register the winner.

    python jobs/tune_vitp.py                                           # notes about phantom patients, two CPU cores
    python jobs/tune_vitp.py --data PREPARED --model.path InternVL2_5-1B --config my_search.yaml --hours 12 --workers 8
    python jobs/extract_vit.py --model models:/raymed-vitp@champion --out VIT

Defaults come from configs/tune_vitp.yaml. The same command goes on with an interrupted search. The validation loss compares
ways to train, not backbones: what a ViT is worth shows in the task it is for.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.job.job import run
from raymed.systems.options import CONFIGS, SearchOptions
from raymed.systems.search_job import search_and_conclude
from raymed.systems.vitp.options import VitpOptions


@dataclass(frozen=True, kw_only=True)
class TuneVitp(VitpOptions, SearchOptions):
    """Options of a pretraining search."""


if __name__ == "__main__":
    run(TuneVitp, search_and_conclude, defaults=CONFIGS / "tune_vitp.yaml")
