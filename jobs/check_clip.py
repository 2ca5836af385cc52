"""Try out CLIP configurations before a night: the towers, pictures and batch of each, forward and backward, on this machine.

    python jobs/check_clip.py --data-dir IMAGES --image-encoder resnet18 --text-encoder BERT --batch-size 64
    python jobs/check_clip.py --data-dir IMAGES --multi-config --config-file configs/train_clip_config.json
    python jobs/check_clip.py --data-dir IMAGES --image-encoder vit --text-encoder BERT --check-device cpu

It takes the options of jobs/train_clip.py, and trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymed.job.job import Outcome, run
from raymed.systems.clip.options import GUIDE, TrainClip


@dataclass(frozen=True, kw_only=True)
class CheckClip(TrainClip):
    """Options of trying out CLIP configurations.

    Attributes:
        check_device: Where a micro-batch is computed: auto is a GPU where there is one.
    """

    check_device: Literal["auto", "cuda", "cpu"] = "auto"


def main(options: CheckClip) -> Outcome:
    from raymed.cluster.connection import connect
    from raymed.systems.clip.check import check_configurations
    from raymed.systems.clip.runs import list_configurations

    connect(start=not options.dry_run)
    configurations, wrong = list_configurations(options, GUIDE)
    return check_configurations(configurations, wrong, options.check_device)


if __name__ == "__main__":
    run(CheckClip, main, aliases=GUIDE)
