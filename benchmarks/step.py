"""Training samples per second and peak memory of the recipe `lung` with InternVL, against three ways of computing the same.

    python benchmarks/step.py                    # the figures of docs/log.md: 5 minutes and 16 GiB on two CPU cores
    python benchmarks/step.py --samples 2 --padded 512 --shape.vocabulary 2000 --shape.layers 1   # seconds, to try it
    python benchmarks/step.py --device cuda --shape.preset internvl2_5-1b --samples 32 --micro_batch 32   # the true shape

- upstream: one sample at a time, padded to 4,096 tokens, logits of the whole vocabulary at every place.
- ordinary: micro-batches of 8, padded to the longest, the network's own ``labels=`` loss.
- tuned: the same at its fastest: micro-batches of `micro_batch`, weights in bf16, the network compiled as a whole.
- recipe: micro-batches of `micro_batch`, logits only where an answer is predicted.
- engine: the same under raymed's engine, DeepSpeed with ZeRO 1, as a run has it.
- compiled: the same with `train.compile on`; with `--compile true`, by which `tuned` is compiled, too.

All train the same network on the same samples, with one step of AdamW per global batch; the losses printed beside the
figures say that they compute the same. A CPU computes in float32; a GPU in bf16, but for the ordinary way, which keeps
float32 weights under autocast, as transformers' Trainer does with its defaults and bf16. `tuned` has that Trainer's fastest
settings: bf16, fused AdamW, attention by SDPA; with `--compile true` torch_compile. No way reads a loss before its step is
over. What does not fit into a GPU is tried again with micro-batches of 8. Each has a process of its own, so that its peak
memory is its own.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from machine import (
    bytes_held,
    flops,
    matrix_rate,
    most_bytes_held,
    open_device,
    process_group_of_one,
    show,
    trace,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from raymed.data.micro_batches import MicroBatch
from raymed.data.phantom import CLASSES, PhantomSettings, phantom_patient
from raymed.data.record import Image, Message, Record
from raymed.errors import UserError
from raymed.models import internvl, internvl_config
from raymed.models.internvl_text import PADDING, REQUIRED, SYSTEM, TURN_END, encode_turns
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import AugmentSettings
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.systems.lung.recipe import LungRecipe
from raymed.training.engine import Engine
from raymed.training.settings import TrainSettings

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
        preset: one of InternVL's, in place of the first three.
    """

    vocabulary: int = 151674
    hidden: int = 256
    layers: int = 6
    size: int = 448
    preset: str = ""


def main(
    shape: Shape = Shape(),
    samples: int = 8,
    padded: int = 4096,
    steps: int = 3,
    micro_batch: int = MICRO_BATCH,
    device: str = "cpu",
    compile: bool = False,
    leave_out: tuple[str, ...] = (),
) -> None:
    """Measure the ways one after the other.

    Args:
        shape: The network.
        samples: Samples of a global batch; upstream, at many seconds each, gets two.
        padded: Tokens that upstream pads to.
        steps: Timed global batches; upstream gets one.
        micro_batch: Of the recipe, the engine and the tuned way.
        device: cpu or cuda.
        compile: Whether the tuned way is compiled, and the engine once more, which takes minutes.
        leave_out: Ways that are not measured.
    """
    if needed := {"recipe", "engine"}.intersection(leave_out):
        raise UserError(f"{' and '.join(sorted(needed))} cannot be left out: the others are compared with it")
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), shape)
        found = {}
        for way, batch, timed, rows in (
            ("upstream", min(2, samples), 1, 1),
            ("ordinary", samples, steps, MICRO_BATCH),
            ("tuned", samples, steps, micro_batch),
            ("recipe", samples, steps, micro_batch),
            ("engine", samples, steps, micro_batch),
            ("compiled", samples, steps, micro_batch),
        ):
            if way in leave_out or (way == "compiled" and not compile):
                continue
            try:
                found[way] = in_own_process(way, folder, shape.size, batch, padded, timed, rows, device, compile)
            except torch.OutOfMemoryError:
                found[way] = in_own_process(way, folder, shape.size, batch, padded, timed, MICRO_BATCH, device, compile)
            print(f"{way}: {found[way]['seconds']:.3f} s a sample", file=sys.stderr)
    recipe, rate = found["recipe"], found["recipe"]["matrix_rate"]
    ours = [way for way in found if way in ("recipe", "engine", "compiled")]
    faster = {
        f"{own} over {other}": found[other]["seconds"] / found[own]["seconds"]
        for own in ours
        for other in ("upstream", "ordinary", "tuned")
        if other in found
    }
    shares = {way: recipe["flops"] / found[way]["seconds"] / rate for way in ours}
    figures: dict[str, Any] = {"ways": found, "speedups": faster, "shares_of_matrix_rate": shares}
    lines = [
        f"{way:9} {each['seconds']:7.3f} s a sample  {1 / each['seconds']:6.2f} samples/s  "
        f"{each['memory'] / 2**30:6.2f} GiB above the model's {each['state'] / 2**30:.2f}  "
        f"language loss {each['loss']:.4f}  by {each['micro_batch']}"
        for way, each in found.items()
    ]
    lines += [
        ", ".join(f"{name} {times:.2f}x" for name, times in faster.items()),
        f"{recipe['flops'] / 1e9:.1f} GFLOP a sample; of {rate / 1e9:.0f} GFLOP/s in matrix products "
        + ", ".join(f"{way} {share:.0%}" for way, share in shares.items()),
    ]
    if "ordinary" in found:
        figures["memory_of_ordinary"] = recipe["memory"] / found["ordinary"]["memory"]
        lines.append(f"recipe: {figures['memory_of_ordinary']:.2f} of ordinary's memory")
    for way in (each for each in found if each != "upstream"):
        seen = found[way]["trace"]
        outside = "" if seen["outside_kernels"] is None else f", {seen['outside_kernels']:.1%} of the time outside kernels"
        lines.append(f"{way}, traced: {seen['operators']:.0f} operators and {seen['kernels']:.0f} kernels a step{outside}")
    lines += [f"{seconds * 1e3:8.2f} ms  {name}" for name, seconds in found["engine"]["trace"]["longest"].items()]
    show("training step", lines, figures, open_device(device))


def write_model(folder: Path, shape: Shape) -> None:
    """A checkpoint folder with random weights and a tokenizer."""
    torch.manual_seed(0)
    heads = shape.hidden // 64
    config = (
        internvl_config.preset_config(shape.preset, shape.size)
        if shape.preset
        else internvl_config.internvl_config(
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


def in_own_process(*arguments: Any) -> dict[str, Any]:
    """What `measure` finds, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def measure(
    way: str, folder: str, size: int, samples: int, padded: int, steps: int, rows: int, device: str, compiles: bool
) -> dict[str, Any]:
    """Seconds a sample, peak memory, for the recipe the work counted, and a trace where a step is short."""
    torch.manual_seed(0)
    computing = open_device(device)
    recipe = LungRecipe(CODES, CLASSES, size, model=ModelSettings(path=folder), augment=AugmentSettings(preset="none"))
    records = phantom_records(size, samples)
    batches = [recipe.encode(records[start : start + rows], TrainingPass(0, 0)) for start in range(0, samples, rows)]
    by_engine = way in ("engine", "compiled")
    with process_group_of_one(computing) if by_engine else contextlib.nullcontext():
        if by_engine:
            step = engine_steps(recipe, batches, computing, "on" if way == "compiled" else "off")
        else:
            step = plain_steps(way, recipe, batches, padded, computing, compiles and way == "tuned")
        state = bytes_held(computing)
        step()  # the first one pays for choosing kernels and for fresh memory
        found: dict[str, Any] = {}
        if way == "recipe":
            found = {"flops": flops(step) / samples, "matrix_rate": matrix_rate(computing)}
        times, losses = [], []
        for _ in range(steps):
            started = time.perf_counter()
            losses.append(step())
            times.append(time.perf_counter() - started)
        if way != "upstream":
            found["trace"] = trace(step, computing)
    return found | {
        "micro_batch": rows,
        "seconds": statistics.median(times) / samples,
        "fastest": min(times) / samples,
        "slowest": max(times) / samples,
        "memory": most_bytes_held(computing) - state,
        "state": state,
        "loss": statistics.fmean(losses),
    }


def plain_steps(
    way: str, recipe: LungRecipe, batches: list[Batch], padded: int, device: torch.device, compiles: bool
) -> Callable[[], float]:
    """A global batch under torch's own AdamW; it gives the language loss."""
    rounded = device.type == "cuda" and way != "ordinary"
    module: Any = recipe.build().train().to(device, torch.bfloat16 if rounded else None)
    if compiles:
        module.network.compile()
    samples = sum(len(batch.ids) for batch in batches)
    micro_step: Callable[[Batch], tuple[Tensor, Tensor]] = {
        "upstream": lambda batch: upstream(module, batch, padded),
        "ordinary": lambda batch: ordinary(module, batch),
        "tuned": lambda batch: ordinary(module, batch),
        "recipe": lambda batch: by_recipe(recipe, module, batch),
    }[way]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)  # rate 0: every step has the same loss
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # which makes the moments
    optimizer.zero_grad()

    def step() -> float:
        losses = []
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16, device.type == "cuda" and not rounded):
                total, language = micro_step(batch.to(device))
            (total / samples).backward()
            losses.append(language.detach())
        optimizer.step()
        optimizer.zero_grad()
        return float(torch.stack(losses).mean())

    return step


def engine_steps(
    recipe: LungRecipe, batches: list[Batch], device: torch.device, compiled: Literal["off", "on"]
) -> Callable[[], float]:
    """A global batch under raymed's engine; it gives the language loss."""
    samples = sum(len(batch.ids) for batch in batches)
    micro_batch = len(batches[0].ids)
    settings = TrainSettings(global_batch=samples, micro_batch=micro_batch, lr=1e-12, weight_decay=0.0, compile=compiled)
    engine = Engine(recipe, settings, 1000, 0, device)
    shares = [(batch, MicroBatch(tuple((row,) for row in range(len(batch.ids))))) for batch in batches]
    count = iter(range(1000))

    def step() -> float:
        engine.step(shares, next(count))
        total, number = engine.read()[0].sums["language_loss"]
        return total / number

    return step


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


def by_recipe(recipe: LungRecipe, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    loss = recipe.compute_loss(module, batch)
    total, count = loss.sums["language_loss"]
    return loss.terms["loss"].total, torch.as_tensor(total) / count


def ordinary(module: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    ids, labels = conversations(module, batch, 0)
    pixels = module.normalise(batch.tensors["pixels"], module.network.dtype)
    loss = module.network(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, labels=labels).loss
    return loss * len(ids), loss


def upstream(module: Any, batch: Batch, padded: int) -> tuple[Tensor, Tensor]:
    # What pads behind the answer cannot be seen from before it: leaving the mask out spares upstream a matrix of 4096^2.
    ids, labels = conversations(module, batch, padded)
    pixels = module.normalise(batch.tensors["pixels"], module.network.dtype)
    logits = module.network(input_ids=ids, pixel_values=pixels, use_cache=False).logits.float()
    language = F.cross_entropy(logits[:, :-1].contiguous().flatten(0, 1), labels[:, 1:].flatten())
    answer = int((labels[0] >= 0).nonzero()[0]) - 1
    choice = F.cross_entropy(logits[:, answer, list(module.prompt.choices)], batch.tensors["labels"], label_smoothing=0.01)
    return language + choice, language


def conversations(module: Any, batch: Batch, padded: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels [rows, length] of the batch's conversations, padded to the longest or to `padded`."""
    picture = (batch.tensors["pixels"].shape[-1] // 28) ** 2
    question = f"<image>\n<cls>: {'|'.join(CODES)}."
    turns = [[Message("human", question), Message("gpt", CODES[label])] for label in batch.tensors["labels"].tolist()]
    rows = [encode_turns(module.tokenizer, each, [picture]) for each in turns]
    length = max(padded, *(len(ids) for ids, _ in rows), 0)
    ids = [ids + [module.tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows]
    labels = [labels + [-100] * (length - len(labels)) for _, labels in rows]
    device = batch.tensors["pixels"].device
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
