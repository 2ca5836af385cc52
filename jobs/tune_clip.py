"""Search for the best CLIP classifier overnight; judge, register and report the winner.

    python jobs/tune_clip.py                                           # phantom patients, small towers, two CPU cores
    python jobs/tune_clip.py --data-dir IMAGES --image-encoder resnet18 --text-encoder BERT --hours 8 --trials 50
    python jobs/tune_clip.py --data-dir IMAGES --patients patients.csv --config my_search.yaml --refit all

IMAGES holds one folder of images for each class. Defaults come from configs/tune_clip.yaml. The same command goes on with an
interrupted search.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.data.prepared import Prepared
from raymed.job.job import run
from raymed.systems.clip.options import GUIDE, ClipOptions
from raymed.systems.options import CONFIGS, SearchOptions
from raymed.systems.search_job import search_and_conclude

SEARCH_GUIDE = {name: alias for name, alias in GUIDE.items() if name != "epochs"}  # here --epochs are those of all trials


@dataclass(frozen=True, kw_only=True)
class TuneClip(ClipOptions, SearchOptions):
    """Options of a CLIP search.

    Attributes:
        split: Shares of train/val/test patients: the winner is judged once on test.
    """

    split: str = "75/15/15"

    def prepared(self) -> Prepared:
        prepared = super().prepared()
        self.log_data_summary(prepared)
        return prepared


if __name__ == "__main__":
    run(
        TuneClip,
        search_and_conclude,
        defaults=CONFIGS / "tune_clip.yaml",
        aliases=SEARCH_GUIDE,
    )
