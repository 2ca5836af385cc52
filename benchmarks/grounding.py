"""Whether a pretrained model reads its pictures: the loss of validation answers with their own pictures and with others'.

    python benchmarks/grounding.py CHECKPOINT/model CORPUS

Pictures change places between patients whose pictures have the same shape; texts stay. A model that has only learned how
notes are worded loses nothing by it. Each data set is judged by itself, and so are answers to declared choices.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from machine import show

from raymed.data.prepared import Prepared
from raymed.data.record import Record
from raymed.recipes.exported import open_model

AT_ONCE = 16  # samples of a batch


def main(model: str, data: str, split: str = "val", draws: int = 20) -> None:
    """Judge a model twice.

    Args:
        model: The folder that a checkpoint holds under model/.
        data: Prepared conversations.
        split: Whose answers.
        draws: Ways to change the pictures' places.
    """
    recipe, network = open_model(Path(model))
    records = [record for record in Prepared.open(data).read(Prepared.open(data).rows(split)) if record.images]

    sources = {"source": np.array([record.source for record in records], dtype=object)}

    def judged(shown: list[Record]) -> dict[str, float]:
        parts = [
            recipe.predict(network, recipe.encode(shown[start : start + AT_ONCE], None))
            for start in range(0, len(shown), AT_ONCE)
        ]
        return recipe.evaluate({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, sources)

    own = judged(records)
    swapped = [judged(exchange(records, np.random.default_rng(seed))) for seed in range(draws)]
    lines = [f"{'':28} own pictures   others' (lowest .. highest of {draws} draws)"]
    for name, value in own.items():
        others = [each[name] for each in swapped]
        lines.append(f"{name:28} {value:12.4f}   {np.mean(others):7.4f} ({min(others):.4f} .. {max(others):.4f})")
    show(f"{len(records)} samples ({split})", lines, {"own": own, "swapped": swapped})


def exchange(records: list[Record], draw: np.random.Generator) -> list[Record]:
    """The same samples, each with the pictures of another patient's, as far as there is one of the same shape."""
    alike = defaultdict(list)
    for place, record in enumerate(records):
        alike[tuple(image.pixels.shape for image in record.images)].append(place)
    shown = list(records)
    for places in alike.values():
        givers = draw.permutation(places).tolist()
        for turn in range(len(places)):  # turn round until as many as can have another patient's
            turned = givers[turn:] + givers[:turn]
            pairs = list(zip(givers, turned, strict=True))
            if all(records[a].patient != records[b].patient for a, b in pairs):
                break
        for taker, giver in pairs:
            shown[taker] = replace(records[taker], images=records[giver].images)
    return shown


if __name__ == "__main__":
    auto_cli(main)
