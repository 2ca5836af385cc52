"""What a figure was measured on, and how figures are printed."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from raymed.training.engine import prepare_process


def describe() -> str:
    """The machine in words, with its load: a figure taken beside other work is worth little."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"


def matrix_rate(side: int = 2048, seconds: float = 2.0) -> float:
    """FLOP/s of float32 products of side x side matrices, the median of as many as fit into `seconds`."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    a @ b
    times: list[float] = []
    while sum(times) < seconds:
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * side**3 / sorted(times)[len(times) // 2]


@contextmanager
def process_group_of_one() -> Iterator[None]:
    """What DeepSpeed wants to find, in a process that trains by itself on the CPU."""
    prepare_process(torch.device("cpu"))
    from deepspeed.utils import groups

    os.environ["LOCAL_RANK"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
            groups._WORLD_GROUP = None  # DeepSpeed would hand it out again


def show(title: str, lines: list[str], figures: dict[str, Any]) -> None:
    """Print the figures for a person, and as one JSON line, which is the last."""
    print(f"{title} ({describe()})", *(f"  {line}" for line in lines), json.dumps(figures), sep="\n", flush=True)


def flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in `step`, which is done once."""
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        step()
    return counter.get_total_flops()


def _attention(
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    dropout: float = 0.0,
    causal: bool = False,
    **_: Any,
) -> int:
    """Two products of [queries, keys] with the heads' width; half of them where each place sees only those before it."""
    rows, heads, queries, width = query
    return 4 * rows * heads * queries * key[2] * width // (2 if causal else 1)


def _attention_backward(
    gradient: tuple[int, ...],
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    out: Any,
    logsumexp: Any,
    dropout: float = 0.0,
    causal: bool = False,
    **_: Any,
) -> int:
    """Twice the forward pass: what the kernel computes again to save memory is not work that must be done."""
    return 2 * _attention(query, key, value, dropout, causal)


# torch 2.13 counts nothing for the attention kernels of CPUs
_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
