"""Search for the best way to train UniMedVL overnight, by the validation loss; register the winner.

    python jobs/tune_unimedvl.py                                       # phantom patients, two CPU cores
    python jobs/tune_unimedvl.py --data PREPARED --model.path UniMedVL --config my_search.yaml --hours 12 --workers 8
    python jobs/vqa.py --model models:/raymed-unimedvl@champion --image PICTURE --prompt "Which lung is affected?"

Defaults come from configs/tune_unimedvl.yaml. The same command goes on with an interrupted search.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.job.job import run
from raymed.systems.options import CONFIGS, SearchOptions
from raymed.systems.search_job import search_and_conclude
from raymed.systems.unimedvl.guide import GUIDE
from raymed.systems.unimedvl.options import UniMedVLOptions


@dataclass(frozen=True, kw_only=True)
class TuneUniMedVL(UniMedVLOptions, SearchOptions):
    """Options of a UniMedVL search."""


if __name__ == "__main__":
    run(
        TuneUniMedVL,
        search_and_conclude,
        defaults=CONFIGS / "tune_unimedvl.yaml",
        aliases=GUIDE,
    )
