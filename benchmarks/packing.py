"""What packing gives UniMedVL: tokens a second, how full sequences are, and what their masks cost.

    python benchmarks/packing.py                                      # the figures of docs/log.md: minutes on two CPU cores
    python benchmarks/packing.py --samples 12 --hidden 64 --layers 1  # seconds, to try it

A mixed set: texts, questions about pictures of several sizes, and edits. A step is a forward and a backward pass; times are
CPU time of all threads, the ways take turns, and only tokens of samples count, not padding.

- packed: as the plan packs them, sequence by sequence.
- padded: one sample at a time, padded to the longest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jsonargparse import auto_cli
from machine import show

from raymed.data.image import ImageSettings
from raymed.data.prepared import Manifest, Prepared
from raymed.data.record import INDEX, Image, Record
from raymed.recipes.recipe import Batch
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.masks import DenseAttention, Splits
from raymed.systems.unimedvl.mixture import PackingSettings
from raymed.systems.unimedvl.network import UniMedVL, start_weights
from raymed.systems.unimedvl.packs import encode_sample
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.sequence import Element, to_messages
from raymed.systems.unimedvl.settings import PRESETS, TINY, NetworkSizes
from raymed.systems.unimedvl.tokens import TextTokens

SIDES = (2, 4, 8, 16)  # of pictures, in tokens; smaller ones are more frequent


def main(samples: int = 64, hidden: int = 256, layers: int = 4, sequence: int = 2048, steps: int = 3) -> None:
    """Time both ways in turn.

    Args:
        samples: Of the set.
        hidden: Width of the language model.
        layers: Of the language model.
        sequence: Tokens of a packed sequence.
        steps: Timed passes over the set, of each way.
    """
    recipe = UniMedVLRecipe(sizes_of(hidden, layers))
    torch.manual_seed(0)
    network = UniMedVL(recipe.sizes)
    start_weights(network)
    records = mixed(samples, recipe.sizes)
    lengths = [len(encode_sample(each, recipe.sizes.grids, TextTokens.bytes()).positions) for each in records]
    packing = PackingSettings(sequence - sequence // 16, sequence, max(lengths), sequence // 2)
    drawn = packing.draw(index_of(lengths), [np.arange(samples)], 0, 0)
    batches = {
        "packed": [recipe.encode([records[row] for row in pack], None) for pack in drawn.packs],
        "padded": [padded(recipe.encode([each], None), max(lengths)) for each in records],
    }
    batches = {name: [with_latents(network, batch) for batch in known] for name, known in batches.items()}
    took: dict[str, list[float]] = {name: [] for name in batches}
    for step in range(steps + 1):
        for name, known in batches.items():
            passed = timed(partial(learn, network, recipe, known))
            took[name] += [passed] if step else []  # the first pass warms up
    masks = statistics.median(timed(lambda: [mask(each) for each in batches["packed"]]) for _ in range(steps))
    seconds = {name: statistics.median(each) for name, each in took.items()}
    figures = {
        "tokens": sum(lengths),
        "longest": max(lengths),
        "sequences": len(drawn.packs),
        "fill_rate": drawn.fill_rate,
        "tokens_per_second": {name: sum(lengths) / each for name, each in seconds.items()},
        "packed_is_faster": seconds["padded"] / seconds["packed"],
        "masks_share": masks / seconds["packed"],
    }
    lines = [
        f"{samples} samples, {sum(lengths)} tokens, the longest {max(lengths)}: {len(drawn.packs)} sequences of {sequence}, "
        f"filled to {drawn.fill_rate:.1%}",
        *(f"{name:<8} {sum(lengths) / each:8.0f} tokens a second" for name, each in seconds.items()),
        f"packed is {figures['packed_is_faster']:.1f} times as fast; masks are {figures['masks_share']:.2%} of its steps",
    ]
    show("packing", lines, figures)


def sizes_of(hidden: int, layers: int) -> NetworkSizes:
    """The tiny network with a larger language model, for pictures of up to 16 x 16 tokens."""
    tiny = PRESETS[TINY]
    language = replace(tiny.language, hidden=hidden, layers=layers, intermediate=4 * hidden)
    return replace(tiny, language=language, vision=replace(tiny.vision, side=SIDES[-1]), latent_side=SIDES[-1])


def mixed(samples: int, sizes: NetworkSizes) -> list[Record]:
    """Texts, questions and edits in turn, of random lengths and sizes."""
    draws = np.random.default_rng(0)
    grids = sizes.grids
    records = []
    for number in range(samples):
        side = SIDES[min(int(draws.geometric(0.5)), len(SIDES)) - 1]
        looked, drawn = (
            draws.integers(0, 256, (side * stride, side * stride, 1), dtype=np.uint8)
            for stride in (grids.vit_patch, grids.latent_stride)
        )
        asked, told = Element("human", "a" * int(draws.integers(10, 60))), Element("gpt", "b" * int(draws.integers(5, 200)))
        elements, images = [asked, told], list[Image]()
        if number % 3:
            elements, images = [Element("vit"), *elements], [Image("input", 0, looked)]
        if number % 3 == 2:
            elements = [Element("vae"), *elements[:2], Element("target", place=1)]
            images += [Image("output", 0, drawn), Image("output", 1, drawn[::-1].copy())]
        records.append(Record(f"r{number}", f"p{number}", "s", 0, None, "set", tuple(images), to_messages(elements)))
    return records


def index_of(lengths: list[int]) -> Prepared:
    """Prepared data of which nothing but the lengths is known."""
    rows = [{"id": f"r{row}", "source": "class/group/set", "cost": cost} for row, cost in enumerate(lengths)]
    group = {"class/group": {"weight": 1.0, "mandatory": False, "sets": ["set"]}}
    empty: dict[str, Any] = {each.name: "" for each in fields(Manifest) if each.name != "format"}
    manifest = Manifest(**(empty | {"settings": {"groups": group, "image": vars(ImageSettings())}}))
    return Prepared(Folder.at("/nowhere"), manifest, pa.Table.from_pylist(rows, schema=INDEX))


def with_latents(network: UniMedVL, batch: Batch) -> Batch:
    """A batch whose pictures the autoencoder has seen, as it has in a search."""
    tensors = dict(batch.tensors)
    tensors["moments"] = network.moments_of(tensors.pop("pixels"), tensors["latent_grids"])
    return replace(batch, tensors=tensors)


def padded(batch: Batch, length: int) -> Batch:
    """One sample with text behind it, of which nothing is learned."""
    tensors = dict(batch.tensors)
    before = len(tensors["positions"])
    more = torch.arange(before, length)
    tensors["positions"] = torch.cat([tensors["positions"], more])
    tensors["text_places"] = torch.cat([tensors["text_places"], more])
    tensors["text_ids"] = torch.cat([tensors["text_ids"], torch.zeros_like(more)])
    for name, value in (("split_lengths", length - before), ("split_modes", 0), ("split_samples", 0)):
        tensors[name] = torch.cat([tensors[name], torch.tensor([value])])
    return replace(batch, tensors=tensors)


def learn(network: UniMedVL, recipe: UniMedVLRecipe, batches: Sequence[Batch]) -> None:
    for batch in batches:
        network.zero_grad()
        recipe.compute_loss(network, batch).mean(batch.units).backward()


def mask(batch: Batch) -> DenseAttention:
    tensors = batch.tensors
    splits = Splits(tensors["split_lengths"], tensors["split_modes"], tensors["split_samples"])
    return DenseAttention(splits, torch.device("cpu"))


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
