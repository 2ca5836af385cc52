"""The pretraining recipe with packed samples under each attention kernel that is here: the same loss and gradient.

    python tests/gpu/run.py --parts packing

- one by one: torch's scaled dot product, sample by sample.
- varlen: torch's kernel for sequences of varying length, the product's choice on a GPU in bf16.
- flash: flash-attn, where it is installed.
- flex: torch's flex_attention, compiled, with a mask of blocks; the product does not use it.

All are compared with float32 on the CPU: the loss may differ by 1 %, the gradient as a vector by a tenth of its length.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from bf16_presets import passed
from jsonargparse import auto_cli
from machine import CPU, open_device, show, synchronize
from pretrain import sample
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from raymed.models import packed_attention
from raymed.models.packed_attention import FLASH, PACKED, SDPA, VARLEN, flash_attn_version
from raymed.models.settings import ModelSettings
from raymed.systems.vitp.recipe import VitpRecipe

LOSS, GRADIENT = 0.01, 0.1  # relative
FLEX = "packed_flex"
TIMES = 5


def main(device: str = "cuda") -> None:
    """Compute with each.

    Args:
        device: cuda, or cpu to try it: only the first is there.
    """
    computing = open_device(device)
    preset, size, count = ("internvl-small", 224, 16) if device == "cuda" else ("internvl-tiny", 56, 4)
    recipe = VitpRecipe(size, model=ModelSettings(preset=preset, attention="sdpa"))
    records = [sample(row, size, 6) for row in range(count)]
    torch.manual_seed(0)
    module: Any = recipe.build().train()
    loss, gradient = passed(recipe, records, module, CPU)
    kernels = {"one by one": (PACKED, SDPA)}
    if device == "cuda":
        AttentionInterface.register(FLEX, flex(torch.compile(flex_attention)))
        kernels |= {"varlen": (PACKED, VARLEN), "flex": (FLEX, SDPA)}  # whose arguments are given
        kernels |= {"flash": (FLASH, FLASH)} if flash_attn_version() else {}
    figures: dict[str, Any] = {}
    for name, (attention, arguments) in kernels.items():
        packed_attention.packed_kernel = lambda *_, told=arguments: told  # type: ignore[assignment, misc]
        other = copy.deepcopy(module).to(computing, torch.bfloat16)
        other.network.model.language_model.set_attn_implementation(attention)
        try:
            figures[name] = measured(recipe, records, other, computing, loss, gradient)
        except Exception as error:  # the others are asked all the same
            figures[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
    wrong = [name for name, each in figures.items() if "error" in each or each["loss"] > LOSS or each["gradient"] > GRADIENT]
    lines = [
        f"{name}: loss off by {each['loss']:.2%}, gradient by {each['gradient']:.1%}, forward and backward "
        f"{each['seconds'] * 1e3:.1f} ms"
        for name, each in figures.items()
        if "error" not in each
    ]
    lines += [f"NOT ALIKE {name}: {figures[name]}" for name in wrong]
    lines += [] if "flash" in kernels else ["left out flash: flash-attn is not installed, or there is no GPU"]
    show("attention over packed samples", lines, figures, computing)
    sys.exit(bool(wrong))


def measured(
    recipe: VitpRecipe, records: list[Any], module: nn.Module, device: torch.device, loss: float, gradient: Tensor
) -> dict[str, float]:
    """How far it is from the loss and gradient that are expected, and its seconds, the median of some."""
    own, direction = passed(recipe, records, module, device)
    times = []
    for _ in range(TIMES):
        synchronize(device)
        started = time.perf_counter()
        passed(recipe, records, module, device)
        times.append(time.perf_counter() - started)
    return {
        "loss": abs(own / loss - 1),
        "gradient": float((direction - gradient).norm() / gradient.norm()),
        "seconds": statistics.median(times),
    }


def flex(attend: Callable[..., Any]) -> Callable[..., tuple[Tensor, None]]:
    """flex_attention as transformers calls it."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: None,
        *,
        lengths: list[int],
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, None]:
        blocks = samples_apart(tuple(lengths), query.device)
        return attend(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=True).transpose(1, 2), None

    return attention


@lru_cache
def samples_apart(lengths: tuple[int, ...], device: torch.device) -> BlockMask:
    """What each place may see: those before it in its own sample."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (owner[query] == owner[key]) & (query >= key)

    return create_block_mask(seen, None, None, len(owner), len(owner), device=device.type)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
