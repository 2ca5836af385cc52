"""Pictures that the device varies, beside those that the CPU varies by the same draws, and how many it varies a second.

python tests/gpu/run.py --parts pictures
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

import torch
from jsonargparse import auto_cli
from machine import open_device, show
from rates import seconds
from step import phantom_records

from raymed.data.labels import LabelTable
from raymed.models.settings import ClipModelSettings
from raymed.recipes.recipe import Recipe, TrainingPass
from raymed.recipes.settings import AugmentSettings
from raymed.systems.clip.crops import prepared_size
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.clip.settings import ClipAugmentSettings
from raymed.systems.lung.recipe import LungRecipe
from raymed.training.feed import Feed

SLICES = 32
OTHERWISE = 1e-3  # of the pixels may be a grey value off


def main(device: str = "cuda") -> None:
    """Compare every preset of the lung's and of CLIP's pictures.

    Args:
        device: cuda, or cpu to try it.
    """
    computing, size = open_device(device), 448 if device == "cuda" else 56
    labels, model = LabelTable.open("lung"), ClipModelSettings("tiny", text_encoder="characters")
    texts = tuple((name,) for name in labels.names)
    recipes: dict[str, tuple[Recipe, int]] = {}
    for preset in presets(AugmentSettings):
        recipes[f"lung {preset}"] = LungRecipe.for_data(labels, size, augment=AugmentSettings(preset, 1.0)), size
    for preset in presets(ClipAugmentSettings):
        recipe = ClipRecipe.for_data(labels, size, texts, model, augment=ClipAugmentSettings(preset))
        recipes[f"clip {preset}"] = recipe, prepared_size(size)
    lines, figures, good = [], dict[str, Any](), True
    records = {side: phantom_records(side, SLICES) for _, side in recipes.values()}
    for name, (recipe, side) in recipes.items():
        feed, left = Feed(computing), recipe.encode(records[side], TrainingPass(0, 0))
        own = left.to(torch.device("cpu")).tensors["pixels"]
        ready = feed.prepare(left)
        there = left.to(computing).tensors["pixels"]
        off = (there.cpu().int() - own.int()).abs()
        most, share = int(off.max()), float((off > 0).double().mean())
        rate = SLICES / seconds(lambda ready=ready, feed=feed: feed.deliver(ready), computing)
        good &= most <= 1 and share <= OTHERWISE
        figures[name] = {"most": most, "share": share, "rate": rate}
        lines.append(f"{name:16} at most {most} grey values off, {share:.5%} of the pixels; {rate:8.0f} slices/s")
    show("varied pictures", lines, figures, computing)
    if not good:
        sys.exit(1)


def presets(settings: type) -> Sequence[Any]:
    return [each for each in get_args(get_type_hints(settings)["preset"]) if each != "none"]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
