"""What pretraining InternVL2_5-1B takes of a worker's memory, and what each way of taking less saves.

    python benchmarks/memory.py                                                        # docs/vitp.md: minutes on two cores
    python benchmarks/memory.py --width 128 --vision_width 64 --vocabulary 300         # seconds, to try it

Activations of one sample are those that autograd keeps (raymed/training/rehearsal.py), in bf16. They grow by as much with
each block: networks of one and of two blocks are counted, and carried on to all. Weights, gradients and AdamW's state follow
from counts of weights in fp32, with 8 workers. At the end the whole network sees one tile in fp32: what this process
grows by in its forward pass is held against that count.
"""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import psutil
import torch
from jsonargparse import auto_cli
from machine import show
from transformers import InternVLForConditionalGeneration

from raymed.data.record import Image, Message, Record
from raymed.models.adapt import freeze
from raymed.models.internvl_config import internvl_config
from raymed.models.internvl_text import byte_tokenizer
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.systems.vitp.network import InternVLChat
from raymed.systems.vitp.recipe import VitpRecipe
from raymed.systems.vitp.token_drop import TokenDropSettings
from raymed.training.heap import give_back_freed_memory
from raymed.training.rehearsal import activation_bytes
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.estimate import state_bytes

GIB, WORKERS, ANSWER = 2**30, 8, 200  # letters of an answer


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        columns: tiles beside each other.
        rows: of tiles; where there are several tiles, a thumbnail comes besides.
        size: side of a tile, in pixels.
        stage: of ZeRO.
        frozen: the language model is not trained.
        checkpointing: activations are computed again.
    """

    columns: int = 3
    rows: int = 2
    size: int = 448
    stage: int = 1
    frozen: bool = False
    checkpointing: bool = False


WAYS = {
    "6 tiles of 448, all trained, ZeRO 1": Way(),
    "4 tiles": Way(columns=2),
    "tiles of 392": Way(size=392),
    "ZeRO 2": Way(stage=2),
    "ZeRO 3": Way(stage=3),
    "language model frozen": Way(frozen=True),
    "activations computed again": Way(checkpointing=True),
}
CHECKED = Way(columns=1, rows=1)


def main(width: int = 896, vision_width: int = 1024, vocabulary: int = 151674, blocks: int = 24) -> None:
    """Count each way.

    Args:
        width: Of the language model.
        vision_width: Of the image backbone.
        vocabulary: Tokens.
        blocks: Of both.
    """
    lines, figures, sizes = [], {}, (width, vision_width, vocabulary)
    for name, way in WAYS.items():
        kept, parameters, learned = carried_on(way, sizes, blocks)
        activations = kept / 2  # bf16
        states = state_bytes(parameters, learned, way.stage, WORKERS)
        figures[name] = {"activations": activations / GIB, "states": states / GIB, "parameters": parameters}
        lines.append(f"{name:38}{states / GIB:7.2f} GiB of states {activations / GIB:7.2f} GiB of activations")
    counted, (held, whole) = carried_on(CHECKED, sizes, blocks)[0], measured(CHECKED, sizes, blocks)
    figures["one tile in fp32"] = {"carried_on": counted / GIB, "whole": whole / GIB, "resident": held / GIB}
    lines.append(
        f"one tile in fp32: {counted / GIB:.2f} GiB carried on from two blocks, {whole / GIB:.2f} GiB counted of all "
        f"{blocks}, {held / GIB:.2f} GiB that the process grew by"
    )
    show(f"InternVL of {blocks} blocks, one sample at a time, {WORKERS} workers", lines, figures)


def carried_on(way: Way, sizes: tuple[int, int, int], blocks: int) -> tuple[int, int, int]:
    """Bytes of activations in fp32, weights and trained weights of so many blocks, from networks of one and of two."""
    ones, twos = (count(*made(way, sizes, number)) for number in (1, 2))
    kept, weights, trained = (one + (blocks - 1) * (two - one) for one, two in zip(ones, twos, strict=True))
    return kept, weights, trained


def count(spec: RunSpec, module: InternVLChat, batch: Batch) -> tuple[int, int, int]:
    """Bytes of activations in fp32, weights, trained weights."""
    kept, parameters = activation_bytes(spec, module, batch), list(module.parameters())
    return kept, sum(map(torch.numel, parameters)), sum(each.numel() for each in parameters if each.requires_grad)


def measured(way: Way, sizes: tuple[int, int, int], blocks: int) -> tuple[int, int]:
    """Bytes that this process grows by in a forward pass whose activations it keeps, and those that are counted of it."""
    spec, module, batch = made(way, sizes, blocks)
    whole, process = activation_bytes(spec, module, batch), psutil.Process()
    gc.collect()
    give_back_freed_memory()
    before = process.memory_info().rss
    loss = spec.recipe.compute_loss(module.train(), batch)
    give_back_freed_memory()
    held = process.memory_info().rss - before
    del loss
    return held, whole


def made(way: Way, sizes: tuple[int, int, int], blocks: int) -> tuple[RunSpec, InternVLChat, Batch]:
    """A run, its network of so many blocks, and one sample.

    Args:
        sizes: width of the language model, width of the image backbone, tokens.
    """
    width, vision_width, vocabulary = sizes
    config = internvl_config(
        way.size, vision_width, blocks, vision_width // 64, width, blocks, width // 64, vocabulary=vocabulary
    )
    with torch.device("meta"):  # nothing is drawn: what is kept depends on shapes alone
        network = InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    network = network.to_empty(device="cpu")
    for tensor in (*network.parameters(), *network.buffers()):
        torch.nn.init.zeros_(tensor)
    if way.frozen:
        freeze(network.model.language_model)
        freeze(network.lm_head)
    if way.checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    recipe = VitpRecipe(way.size, token_drop=TokenDropSettings(rate=0))
    spec = RunSpec("run", "/nowhere", "", recipe, TrainSettings(precision="fp32"))
    pictures = [Image("input", 0, np.zeros((way.rows * way.size, way.columns * way.size, 1), np.uint8))]
    if way.rows * way.columns > 1:
        pictures.append(Image("thumbnail", 0, np.zeros((way.size, way.size, 1), np.uint8)))
    turns = (Message("human", "<image>\nDescribe."), Message("gpt", "x" * ANSWER))
    batch = recipe.encode([Record("s", "s", "s", 0, None, "made", tuple(pictures), turns)], TrainingPass(0, 0))
    return spec, InternVLChat(network, byte_tokenizer(), "imagenet"), batch


if __name__ == "__main__":
    auto_cli(main)
