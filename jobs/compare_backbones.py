"""Which image backbone is the better one for a task: the same labelled pictures asked about, each among the others.

    python jobs/compare_backbones.py InternVL2_5-1B VIT --input PREPARED --split val
    python jobs/compare_backbones.py VIT models:/raymed-vitp@champion OTHER --input IMAGES

The first is the one that the others are compared with, query by query. Pictures of the query's own patient are left out.
IMAGES are labelled as jobs/extract_features.py reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run
from raymed.models.settings import FeatureSettings
from raymed.retrieval.input import OWN_NAMES, Input


@dataclass(frozen=True, kw_only=True)
class CompareBackbones(JobOptions, Input):
    """Options of comparing backbones.

    Attributes:
        models: Two or more, also without the option's name: ViTs (jobs/extract_vit.py), or models that have one: folders,
            files, models:/NAME@ALIAS, runs:/RUN_ID.
        top_k: Which Top-k; mAP is that of the largest.
        features: Which layer, and how it becomes one vector.
        micro_batch: Pictures that a ViT sees at once.
        bootstrap: Resamples of patients behind each interval.
    """

    BARE: ClassVar[tuple[str, ...]] = ("models",)
    SAID_AS: ClassVar[Mapping[str, str]] = OWN_NAMES

    models: list[str]
    top_k: list[int] = field(default_factory=lambda: [1, 5])
    features: FeatureSettings = field(default_factory=FeatureSettings)
    micro_batch: int = 32
    bootstrap: int = 1000


def main(options: CompareBackbones) -> Outcome:
    from raymed.registry.address import open_tower
    from raymed.retrieval.comparison import compare, judge_backbone
    from raymed.retrieval.evaluation import Judging
    from raymed.retrieval.extract import Work

    if len(options.models) < 2:
        raise UserError("--models takes two or more: the first is what the others are compared with")
    judging, judged = Judging(tuple(sorted(options.top_k)), options.bootstrap), []
    towers = {model: open_tower(model, options.tracking) for model in options.models}
    for model, tower in towers.items():
        opened = options.open(tower.size)
        if options.dry_run:
            return Outcome(
                f"would ask {len(towers)} backbones about {opened.pictures} pictures", {"pictures": opened.pictures}
            )
        work = Work(tower.resized(opened.image.size), options.features, opened.image)
        judged.append((model, judge_backbone(work, opened, judging, options.micro_batch)))
    backbones, chance = compare(judged, judging), judged[0][1].best.chance
    lines = [*(line for each in backbones for line in each.lines())]
    lines.append("chance: " + ", ".join(f"Top-{k} {value:.3f}" for k, value in chance.items()))
    lines += [*judged[0][1].notes, f"{judged[0][1].best.queries} pictures of {judged[0][1].best.patients} patients"]
    return Outcome("\n".join(lines), {"backbones": [each.describe() for each in backbones]})


if __name__ == "__main__":
    run(CompareBackbones, main)
