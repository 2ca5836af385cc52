"""Pretraining samples per second and peak memory of the recipe `vitp`, against two ways of computing the same.

    python benchmarks/pretrain.py                # the figures of docs/log.md
    python benchmarks/pretrain.py --samples 4 --padded 1024 --shape.vocabulary 2000 --shape.layers 1 --shape.size 56
    python benchmarks/pretrain.py --device cuda --shape.preset internvl2_5-1b --samples 32 --rates 0.5     # the true shape

- upstream: one sample at a time, padded to 4,096 tokens, logits of the whole vocabulary at every place; activations of both
  towers are computed again in the backward pass, as upstream's scripts have it.
- upstream, kept: the same with activations kept, for machines whose memory that needs.
- ordinary: micro-batches of 4 as they come, padded to the longest, the network's own ``labels=`` loss.
- recipe: samples packed into sequences of 4,096 tokens, logits only where an answer is learned; and the same with longer
  sequences, where the device has room for them.

All train the same network on the same samples, in float32 on a CPU and bf16 on a GPU, with one step of AdamW per global
batch; the losses printed beside the figures say that they compute the same. Of every four samples two have one tile and a
short answer, one has three, five or seven tiles and a long one, and one is text alone; how many words is drawn.
``--max_tiles 1`` leaves every picture one tile, as an X-ray or a CT slice is. The recipe is then timed with image tokens
dropped. Each has its own process. So few samples fill sequences badly; what an epoch fills is computed from the lengths of
as many as are packed at a time.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from machine import bytes_held, flops, matrix_rate, most_bytes_held, open_device, show, synchronize
from step import Shape, write_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from raymed.data.packing import WINDOW, pack
from raymed.data.record import Image, Message, Record
from raymed.data.tiles import TOKEN_SIDE
from raymed.models.internvl_text import encode_turns
from raymed.models.settings import ModelSettings
from raymed.recipes.recipe import TrainingPass
from raymed.systems.vitp.recipe import VitpRecipe
from raymed.systems.vitp.token_drop import TokenDropSettings

MICRO_BATCH = 4  # with 8, logits and their gradients alone take more than 20 GiB
SHAPE = Shape()
LARGE = ((2, 1), (2, 2), (3, 2))  # columns and rows of large pictures, which have a thumbnail besides
WORDS = (2, 6, 60, 80)  # of an answer, on average
PUBLISHED = (
    1.55  # samples/s of an A40 in ViTP's pretraining of InternVL2.5-1B: 8 cards, global batch 128, 8,000 steps in 23 h
)
Micro = tuple[Tensor, Tensor, Tensor | float]
"""Of a micro-batch: the loss to go back from, the summed cross-entropy and the number of supervised tokens."""
Step = Callable[[], Iterator[Micro]]


def main(
    shape: Shape = SHAPE,
    samples: int = 8,
    upstream: int = 4,
    padded: int = 4096,
    steps: int = 3,
    rates: str = "0.25,0.5,0.75",
    packed: str = "16384",
    max_tiles: int = 6,
    device: str = "cpu",
) -> None:
    """Measure one after the other.

    Args:
        shape: The network.
        samples: Samples of a global batch.
        upstream: Samples that upstream gets, at many seconds each; of every four the kinds are as in the whole batch.
        padded: Tokens that upstream pads to, and that a packed sequence holds.
        steps: Timed global batches of the ordinary way and the recipe; upstream gets one.
        rates: Shares of image tokens that are dropped, separated by commas.
        packed: Tokens of longer sequences, separated by commas.
        max_tiles: Most tiles of a picture, its thumbnail not counted.
        device: cpu or cuda.
    """
    ways = [("upstream", upstream, padded, 1, 0.0), ("upstream, kept", upstream, padded, 1, 0.0)]
    ways += [("ordinary", samples, padded, steps, 0.0), ("recipe", samples, padded, steps, 0.0)]
    longer = {f"recipe, {length:,} tokens": length for length in map(int, packed.split(","))}
    ways += [(way, samples, length, steps, 0.0) for way, length in longer.items()]
    ways += [(f"recipe, {float(rate):.0%} dropped", samples, padded, steps, float(rate)) for rate in rates.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), shape)
        found: dict[str, dict[str, float]] = {}
        for way, count, tokens, timed, rate in ways:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                words = (way, folder, shape.size, max_tiles, count, tokens, timed, rate, device)
                try:
                    found[way] = process.submit(measure, *words).result()
                except torch.OutOfMemoryError:
                    if way not in longer:
                        raise
                    print(f"{way}: out of memory", file=sys.stderr)
                    continue
            print(f"{way}: {found[way]['seconds']:.3f} s a sample", file=sys.stderr)
    recipe = found["recipe"]
    figures = {
        "ways": found,
        "speedup_over_upstream": found["upstream"]["seconds"] / recipe["seconds"],
        "speedup_over_upstream_kept": found["upstream, kept"]["seconds"] / recipe["seconds"],
        "speedup_over_ordinary": found["ordinary"]["seconds"] / recipe["seconds"],
        "memory_of_ordinary": recipe["memory"] / found["ordinary"]["memory"],
        "arithmetic_of_upstream": found["upstream"]["flops"] / recipe["flops"],
        "published": PUBLISHED,
    }
    lines = [
        f"{way:21} {each['seconds']:7.3f} s a sample  {1 / each['seconds']:6.2f} samples/s  {each['places']:6.0f} places "
        f"({each['filled']:4.0%} filled)  {each['memory'] / 2**30:6.2f} GiB above the model's "
        f"{each['state'] / 2**30:.2f}  loss {each['loss']:.4f}  {each['flops'] / 1e9:5.0f} GFLOP a sample at "
        f"{each['share_of_matrix_rate']:.0%} of the matrix rate"
        for way, each in found.items()
    ]
    lines.append(
        f"recipe: {figures['speedup_over_upstream']:.1f}x upstream ({figures['speedup_over_upstream_kept']:.1f}x with "
        f"activations kept), {figures['speedup_over_ordinary']:.2f}x ordinary, "
        f"{figures['memory_of_ordinary']:.2f} of ordinary's memory; an epoch fills {recipe['epoch_filled']:.1%}; upstream "
        f"needs {figures['arithmetic_of_upstream']:.1f} times the arithmetic"
    )
    lines += [f"{way}: out of memory" for way in longer if way not in found]
    if shape.preset:
        lines.append(f"published of upstream, padded to 4,096 tokens: {PUBLISHED} samples/s of each of 8 A40")
    show("pretraining step", lines, figures, open_device(device))


def measure(
    way: str, folder: str, size: int, max_tiles: int, count: int, padded: int, steps: int, rate: float, device: str
) -> dict[str, float]:
    """Seconds a sample, peak memory, loss, places computed and the share of them that holds a token; in a fresh process."""
    torch.manual_seed(0)
    computing = open_device(device)
    model = ModelSettings(path=folder, gradient_checkpointing=way == "upstream")
    recipe = VitpRecipe(size, model=model, token_drop=TokenDropSettings(rate, "paper"))
    module: Any = recipe.build().train().to(computing, torch.bfloat16 if device == "cuda" else None)
    records = [sample(number, size, max_tiles) for number in range(count)]
    alone = [recipe.encode([record], None).tensors for record in records]
    costs = np.array([len(each["ids"]) for each in alone])

    if way.startswith("recipe"):
        packs = [[records[place] for place in each] for each in pack(costs, padded)]
        batches = [recipe.encode(each, TrainingPass(0, 0)).to(computing) for each in packs]
        places = float(sum(batch.tensors["lengths"].sum() for batch in batches))
        filled = float(costs.sum()) / (len(packs) * padded)
        epoch = np.array([length(number, size, max_tiles, module.tokenizer) for number in range(WINDOW)])
        epoch_filled = float(epoch.sum()) / (len(pack(epoch, padded)) * padded)
        step = lambda: by_recipe(recipe, module, batches)  # noqa: E731
    else:
        by_transformers(module)
        upstream = way.startswith("upstream")
        rows = 1 if upstream else MICRO_BATCH
        parts = [alone[start : start + rows] for start in range(0, count, rows)]
        longest = [max(len(each["ids"]) for each in part) for part in parts]
        lengths = [padded] * len(parts) if upstream else longest
        places = float(sum(length * len(part) for length, part in zip(lengths, parts, strict=True)))
        filled = epoch_filled = float(costs.sum()) / places
        one = upstream_step if upstream else ordinary_step
        step = lambda: (one(module, part, length) for part, length in zip(parts, lengths, strict=True))  # noqa: E731

    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)  # rate 0: every step has the same loss
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = bytes_held(computing)
    optimizer.zero_grad()
    # the first pass pays for choosing kernels and for fresh memory
    needed = flops(lambda: [total.backward() for total, _, _ in step()]) / count

    times = []
    for _ in range(steps):
        optimizer.zero_grad()
        sums = []
        started = time.perf_counter()
        for total, nll, tokens in step():
            total.backward()
            sums.append((nll, tokens))
        optimizer.step()
        synchronize(computing)
        times.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(times) / count,
        "fastest": min(times) / count,
        "slowest": max(times) / count,
        "memory": most_bytes_held(computing) - state,
        "state": state,
        "loss": sum(float(nll) for nll, _ in sums) / sum(float(tokens) for _, tokens in sums),
        "places": places,
        "filled": filled,
        "epoch_filled": epoch_filled,
        "flops": needed,
        "share_of_matrix_rate": needed / statistics.median(times) * count / matrix_rate(computing),
    }


def sample(number: int, size: int, max_tiles: int) -> Record:
    """A sample of noise and made words: short, short, long or text alone, in turn."""
    draw, (columns, rows) = np.random.default_rng(number), grid(number, max_tiles)
    shapes = [("input", (rows * size, columns * size, 1)), ("thumbnail", (size, size, 1))][: min(2, rows * columns)]
    images = tuple(Image(role, 0, draw.integers(0, 256, shape, dtype=np.uint8)) for role, shape in shapes)
    return Record(f"s{number}", f"s{number}", f"s{number}", 0, None, "made", images, turns(number))


def grid(number: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of a sample's picture; 0 for one without."""
    columns, rows = ((1, 1), (1, 1), LARGE[number // 4 % 3], (0, 0))[number % 4]
    return (columns, rows) if columns * rows <= max_tiles else (1, 1)


def turns(number: int) -> tuple[Message, Message]:
    draw, most = np.random.default_rng([number, 1]), 2 * WORDS[number % 4]
    words = ["".join(chr(97 + int(letter)) for letter in draw.integers(0, 26, 4)) for _ in range(draw.integers(1, most))]
    question = "What is known?" if number % 4 == 3 else "<image>\nWhat is seen?"
    return Message("human", question), Message("gpt", " ".join(words))


def length(number: int, size: int, max_tiles: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of a sample."""
    tiles = math.prod(grid(number, max_tiles))
    image_tokens = [(tiles + (tiles > 1)) * (size // TOKEN_SIDE) ** 2] if tiles else []
    return len(encode_turns(tokenizer, turns(number), image_tokens)[0])


def by_recipe(recipe: VitpRecipe, module: Any, batches: Any) -> Iterator[Micro]:
    for batch in batches:
        loss = recipe.compute_loss(module, batch)
        total, count = loss.sums["token_loss"]
        yield loss.terms["loss"].total, torch.as_tensor(total).detach(), count


def by_transformers(module: Any) -> None:
    """Let the language model attend as transformers does, and its output layer give logits only."""
    module.network.model.language_model.set_attn_implementation("sdpa")
    weight = module.network.lm_head.weight
    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = weight
    module.network.lm_head = plain


def ordinary_step(module: Any, part: list[dict[str, Tensor]], length: int) -> Micro:
    ids, labels, mask, pixels = padded_batch(module, part, length)
    loss = module.network(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels, use_cache=False).loss
    learned = (labels >= 0).sum()
    return loss * learned, loss.detach() * learned, learned


def upstream_step(module: Any, part: list[dict[str, Tensor]], length: int) -> Micro:
    # What pads behind the answer cannot be seen from before it: leaving the mask out spares upstream a matrix of 4096^2.
    ids, labels, _, pixels = padded_batch(module, part, length)
    logits = module.network(input_ids=ids, pixel_values=pixels, use_cache=False).logits.float()
    total = F.cross_entropy(logits[:, :-1].contiguous().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total, total.detach(), (labels >= 0).sum()


def padded_batch(module: Any, part: list[dict[str, Tensor]], length: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Token ids, labels and mask [rows, length], and the normalised tiles of all rows."""
    ids = torch.full((len(part), length), module.tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, each in enumerate(part):
        ids[row, : len(each["ids"])] = each["ids"]
        mask[row, : len(each["ids"])] = 1
        labels[row, each["places"] + 1] = each["targets"]
    tiles = torch.cat([each["pixels"] for each in part])
    weight = module.network.lm_head.weight
    ids, labels, mask = (each.to(weight.device) for each in (ids, labels, mask))
    return ids, labels, mask, module.normalise(tiles.to(weight.device), weight.dtype) if len(tiles) else None


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
