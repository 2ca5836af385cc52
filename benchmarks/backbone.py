"""What pretraining gave a ViT: retrieval of patients it has not seen, with its weights before and after.

    python jobs/prepare_lung.py --source labels.csv --out PREPARED --image.size 112
    python benchmarks/backbone.py CHECKPOINT/model PREPARED       # CHECKPOINT is what jobs/pretrain_vitp.py names

The gallery is the train split, the queries are another one's pictures; nobody in the queries may have been pretrained on.
Before means the weights that the recipe starts with: given ones, or random ones. Both are compared query by query.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from machine import show

from raymed.data.prepared import Prepared
from raymed.evaluation.summary import show as shown
from raymed.models.features import FeatureSettings
from raymed.models.vision_tower import VisionTower
from raymed.recipes.exported import open_model
from raymed.retrieval.comparison import by_query
from raymed.retrieval.evaluation import Judging, evaluate
from raymed.retrieval.extract import Work, extract
from raymed.retrieval.features import Features
from raymed.retrieval.gallery import RetrievalSettings
from raymed.retrieval.metrics import PatientResamples
from raymed.retrieval.parts import prepared_parts
from raymed.retrieval.summary import table


def main(model: str, data: str, queries: str = "test", layer: int = -1, bootstrap: int = 1000, seed: int = 0) -> None:
    """Judge retrieval twice.

    Args:
        model: The folder that a checkpoint holds under model/.
        data: Prepared pictures with labels.
        queries: The split that is asked about, val or test.
        layer: Whose features, as in jobs/extract_features.py.
        bootstrap: Resamples of patients behind each interval.
        seed: Of random weights and resamples.
    """
    prepared, judging = Prepared.open(data), Judging(bootstrap=bootstrap, seed=seed)
    recipe, trained = open_model(Path(model))
    torch.manual_seed(seed)
    found = {}
    plain = replace(recipe, model=replace(recipe.model, vision_lora=0, language_lora=0))  # type: ignore[type-var,attr-defined]
    for when, module in (("before", plain.build()), ("after", trained)):
        network: Any = module
        vision = network.network.model.vision_tower
        tower = VisionTower(vision.config, vision.state_dict(), {}, when).resized(prepared.size)
        work = Work(tower, FeatureSettings(layer=layer), prepared.image)
        gallery, asked = (features(work, prepared, split) for split in ("train", queries))
        found[when] = evaluate(gallery, asked, RetrievalSettings(), gallery.layers, judging)
        print(f"{when}: judged", file=sys.stderr)
    lines = [line for when, each in found.items() for line in (when, *table(each.judged, each.best))]
    paired = PatientResamples(asked.labels, asked.owners, bootstrap, seed)
    before, after = by_query(found["before"]), by_query(found["after"])
    difference = {name: paired.mean(after[name] - before[name]) for name in after}
    lines += [f"{name}, after - before, query by query: {shown(each)}" for name, each in difference.items()]
    figures = {when: asdict(each.best) for when, each in found.items()}
    figures |= {"difference": {name: asdict(each) for name, each in difference.items()}}
    show(f"{len(asked)} queries ({queries})", lines, figures)


def features(work: Work, prepared: Prepared, split: str) -> Features:
    """Of a split's pictures."""
    with tempfile.TemporaryDirectory() as folder:
        extract(work, prepared_parts(prepared, split), {"kind": "prepared", "root": prepared.folder.uri}, folder)
        return Features.open(folder)


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
