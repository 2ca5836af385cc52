"""Training samples per second and peak memory of the recipe `lung` with InternVL, against two ways of computing the same.

    python benchmarks/step.py                    # the figures of docs/log.md: 5 minutes and 16 GiB on two CPU cores
    python benchmarks/step.py --samples 2 --padded 512 --shape.vocabulary 2000 --shape.layers 1   # seconds, to try it

- upstream: one sample at a time, padded to 4,096 tokens, logits of the whole vocabulary at every place.
- ordinary: micro-batches of 8, padded to the longest, the network's own ``labels=`` loss.
- recipe: micro-batches of 8, logits only where an answer is predicted.

All train the same network on the same samples in float32, with one step of AdamW per global batch; the losses printed
beside the figures say that they compute the same. Each has a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from machine import flops, matrix_rate, show
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from raymed.data.phantom import CLASSES, PhantomSettings, phantom_patient
from raymed.data.record import Image, Message, Record
from raymed.models import internvl, internvl_config
from raymed.models.internvl_text import PADDING, REQUIRED, SYSTEM, TURN_END, encode_turns
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import AugmentSettings
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.systems.lung.recipe import LungRecipe

CODES = ("0", "1", "2", "3")
MICRO_BATCH = 8
TEXT_PIECES = 374  # of the benchmark's tokenizer: with so many the text takes 64 tokens, as with the real one


@dataclass(frozen=True)
class Shape:
    """The network: InternVL with its true vocabulary and picture size, narrow enough for a CPU.

    Attributes:
        vocabulary: tokens.
        hidden: width of both towers.
        layers: of each tower.
        size: side of the square pictures, in pixels.
    """

    vocabulary: int = 151674
    hidden: int = 256
    layers: int = 6
    size: int = 448


def main(shape: Shape = Shape(), samples: int = 8, padded: int = 4096, steps: int = 3) -> None:
    """Measure the three ways one after the other.

    Args:
        shape: The network.
        samples: Samples of a global batch; upstream, at many seconds each, gets two.
        padded: Tokens that upstream pads to.
        steps: Timed global batches of the ordinary way and the recipe; upstream gets one.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), shape)
        found = {}
        for way, batch, timed in (
            ("upstream", min(2, samples), 1),
            ("ordinary", samples, steps),
            ("recipe", samples, steps),
        ):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found[way] = process.submit(measure, way, folder, shape.size, batch, padded, timed).result()
            print(f"{way}: {found[way]['seconds']:.3f} s a sample", file=sys.stderr)
    recipe = found["recipe"]
    share = recipe["flops"] / recipe["seconds"] / recipe["matrix_rate"]
    figures = {
        "ways": found,
        "speedup_over_upstream": found["upstream"]["seconds"] / recipe["seconds"],
        "speedup_over_ordinary": found["ordinary"]["seconds"] / recipe["seconds"],
        "memory_of_ordinary": recipe["memory"] / found["ordinary"]["memory"],
        "share_of_matrix_rate": share,
    }
    lines = [
        f"{way:9} {each['seconds']:7.3f} s a sample  {1 / each['seconds']:6.2f} samples/s  "
        f"{each['memory'] / 2**30:6.2f} GiB above the model's {each['state'] / 2**30:.2f}  language loss {each['loss']:.4f}"
        for way, each in found.items()
    ]
    lines += [
        f"recipe: {figures['speedup_over_upstream']:.1f}x upstream, {figures['speedup_over_ordinary']:.2f}x ordinary, "
        f"{figures['memory_of_ordinary']:.2f} of ordinary's memory",
        f"{recipe['flops'] / 1e9:.1f} GFLOP a sample, {recipe['flops'] / recipe['seconds'] / 1e9:.0f} of "
        f"{recipe['matrix_rate'] / 1e9:.0f} GFLOP/s in matrix products: {share:.0%}",
    ]
    show("training step", lines, figures)


def write_model(folder: Path, shape: Shape) -> None:
    """A checkpoint folder with random weights and a tokenizer."""
    torch.manual_seed(0)
    heads = shape.hidden // 64
    config = internvl_config.internvl_config(
        size=shape.size,
        vision_hidden=shape.hidden,
        vision_layers=shape.layers,
        vision_heads=heads,
        hidden=shape.hidden,
        layers=shape.layers,
        heads=heads,
        key_value_heads=max(1, heads // 2),
        vocabulary=shape.vocabulary,
    )
    network = InternVLForConditionalGeneration._from_config(config)
    internvl.InternVLClassifier(network, text_tokenizer(), CODES).export(folder)


def text_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that cuts the prompt into about as many tokens as the real one, whose files are not at hand."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=TEXT_PIECES, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator([SYSTEM, "system\n user\n assistant\n"] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PADDING, eos_token=TURN_END, extra_special_tokens=list(REQUIRED)
    )


def measure(way: str, folder: str, size: int, samples: int, padded: int, steps: int) -> dict[str, float]:
    """Seconds a sample, peak memory, and for the recipe the work counted; in a fresh process."""
    torch.manual_seed(0)
    recipe = LungRecipe(CODES, CLASSES, size, model=ModelSettings(path=folder), augment=AugmentSettings(preset="none"))
    module = recipe.build().train()
    records = phantom_records(size, samples)
    rows = 1 if way == "upstream" else MICRO_BATCH
    batches = [recipe.encode(records[start : start + rows], TrainingPass(0, 0)) for start in range(0, samples, rows)]
    micro_step: Callable[[Batch], tuple[Tensor, float]] = {
        "upstream": lambda batch: upstream(module, batch, padded),
        "ordinary": lambda batch: ordinary(module, batch),
        "recipe": lambda batch: by_recipe(recipe, module, batch),
    }[way]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)  # rate 0: every step has the same loss
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = psutil.Process().memory_info().rss
    optimizer.zero_grad()

    found: dict[str, float] = {}
    if way == "recipe":
        found["flops"] = flops(lambda: micro_step(batches[0])[0].backward()) / len(batches[0].ids)
        found["matrix_rate"] = matrix_rate()
    else:
        micro_step(batches[0])[0].backward()  # the first pass pays for choosing kernels and for fresh memory

    times, losses = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        started = time.perf_counter()
        for batch in batches:
            total, language = micro_step(batch)
            (total / samples).backward()
            losses.append(language)
        optimizer.step()
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return found | {
        "seconds": statistics.median(times) / samples,
        "fastest": min(times) / samples,
        "slowest": max(times) / samples,
        "memory": peak - state,
        "state": state,
        "loss": statistics.fmean(losses),
    }


def phantom_records(size: int, count: int) -> list[Record]:
    """Slices from the middle of as many phantom patients."""
    settings = PhantomSettings(size=size, slices=(3, 3))
    pictures = [phantom_patient(settings, number)[1][1] for number in range(count)]
    return [
        Record(
            f"p{number}", f"p{number}", f"p{number}", 0, number % 4, "phantom", (Image("input", 0, pixels[..., None]),), ()
        )
        for number, pixels in enumerate(pictures)
    ]


def by_recipe(recipe: LungRecipe, module: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    loss = recipe.compute_loss(module, batch)
    total, count = loss.sums["language_loss"]
    return loss.terms["loss"].total, float(total) / count


def ordinary(module: Any, batch: Batch) -> tuple[Tensor, float]:
    ids, labels = conversations(module, batch, 0)
    pixels = module.normalise(batch.tensors["pixels"], torch.float32)
    loss = module.network(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, labels=labels).loss
    return loss * len(ids), float(loss.detach())


def upstream(module: Any, batch: Batch, padded: int) -> tuple[Tensor, float]:
    # What pads behind the answer cannot be seen from before it: leaving the mask out spares upstream a matrix of 4096^2.
    ids, labels = conversations(module, batch, padded)
    pixels = module.normalise(batch.tensors["pixels"], torch.float32)
    logits = module.network(input_ids=ids, pixel_values=pixels, use_cache=False).logits.float()
    language = F.cross_entropy(logits[:, :-1].contiguous().flatten(0, 1), labels[:, 1:].flatten())
    answer = int((labels[0] >= 0).nonzero()[0]) - 1
    choice = F.cross_entropy(logits[:, answer, list(module.prompt.choices)], batch.tensors["labels"], label_smoothing=0.01)
    return language + choice, float(language.detach())


def conversations(module: Any, batch: Batch, padded: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels [rows, length] of the batch's conversations, padded to the longest or to `padded`."""
    picture = (batch.tensors["pixels"].shape[-1] // 28) ** 2
    question = f"<image>\n<cls>: {'|'.join(CODES)}."
    turns = [[Message("human", question), Message("gpt", CODES[label])] for label in batch.tensors["labels"].tolist()]
    rows = [encode_turns(module.tokenizer, each, [picture]) for each in turns]
    length = max(padded, *(len(ids) for ids, _ in rows), 0)
    ids = torch.tensor([ids + [module.tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows])
    return ids, torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows])


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
