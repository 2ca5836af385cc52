"""What a figure was measured on, and how figures are printed."""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from raymed.training.process import prepare_process

CPU = torch.device("cpu")
LONGEST = 8  # kernels, or operators, that a trace names
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices that a device's rate is measured with


def describe(device: torch.device = CPU) -> str:
    """The machine in words, with its load: a figure taken beside other work is worth little."""
    memory = psutil.virtual_memory().total / 2**30
    card = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, " if device.type == "cuda" else ""
    return f"{card}{os.cpu_count()} CPU cores, {memory:.0f} GiB, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"


def open_device(name: str) -> torch.device:
    """The device of that name, on which this process computes from now on."""
    device = torch.device(name, 0) if name == "cuda" else torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device = CPU, side: int = 0, seconds: float = 2.0) -> float:
    """FLOP/s of products of random matrices, in bf16 on a GPU and float32 on a CPU: the median of as many as fit into
    `seconds`.

    Args:
        side: of the square matrices (0 = `SIDES`).
    """
    side, dtype = side or SIDES[device.type], torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    times: list[float] = []
    while sum(times) < seconds:
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(times)


def bytes_held(device: torch.device) -> int:
    """Bytes that this process holds: of a GPU's memory in tensors, or of the machine's."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def most_bytes_held(device: torch.device) -> int:
    """The most that `bytes_held` ever was."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def process_group_of_one(device: torch.device = CPU) -> Iterator[None]:
    """What DeepSpeed wants to find, in a process that trains by itself."""
    prepare_process(device)
    from deepspeed.utils import groups

    os.environ["LOCAL_RANK"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
            groups._WORLD_GROUP = None  # DeepSpeed would hand it out again


def show(title: str, lines: list[str], figures: dict[str, Any], device: torch.device = CPU) -> None:
    """Print the figures for a person, and as one JSON line, which is the last."""
    print(f"{title} ({describe(device)})", *(f"  {line}" for line in lines), json.dumps(figures), sep="\n", flush=True)


def trace(step: Callable[[], object], device: torch.device, times: int = 3) -> dict[str, Any]:
    """What a profiler sees of some steps, all by step: operators, kernels, the seconds of the longest, and the share of the
    time in which the card computed nothing. On a CPU, which has no kernels beside its operators, the longest operators."""
    on_card = device.type == "cuda"
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]) as seen:
        started = time.perf_counter()
        for _ in range(times):
            step()
        synchronize(device)
        seconds = time.perf_counter() - started
    events = seen.events() or []
    kernels = [each for each in events if each.device_type == DeviceType.CUDA and not each.is_user_annotation]
    busy = covered((each.time_range.start, each.time_range.end) for each in kernels) / 1e6
    took = Counter[str]()
    for each in kernels:
        took[each.name] += each.time_range.elapsed_us()
    if not kernels:
        took.update({each.key: each.self_cpu_time_total for each in seen.key_averages()})
    return {
        "operators": sum(each.name.startswith("aten::") for each in events) / times,
        "kernels": len(kernels) / times,
        "outside_kernels": 1 - busy / seconds if kernels else None,  # nor where a machine lets nobody trace its card
        "longest": {name[:80]: spent / times / 1e6 for name, spent in took.most_common(LONGEST)},
    }


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much of a line spans cover, of which some overlap."""
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in `step`, which is done once."""
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        step()
    return counter.get_total_flops()


def _formulas() -> dict[Any, Callable[..., int]]:
    """Attention as work that must be done. torch counts all of a causal square, and nothing for the kernels of CPUs."""
    names = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    operators = [("aten", f"_scaled_dot_product_{name}") for name in names] + [("torch_attn", "_varlen_attn")]
    formulas = {}
    for library, name in operators:
        for suffix, products in (
            ("", 2),
            ("_backward", 4),
        ):  # what a backward pass computes again to save memory is not work
            operator = getattr(getattr(torch.ops, library), name + suffix, None)
            if operator is not None:
                formulas[operator] = _attention(operator, products)
    return formulas


def _attention(operator: Any, products: int) -> Callable[..., int]:
    """So many products of [queries, keys] with the heads' width; half of each where a place sees only those before it."""
    names = [argument.name for argument in operator.default._schema.arguments]

    def count(*values: Any, out_val: Any = None, **others: Any) -> int:
        given = dict(zip(names, values, strict=False)) | others
        query: Tensor = given["query"]
        if "cu_seq_q" in given:  # samples that lie end to end, [total, heads, width]
            squares = int(given["cu_seq_q"].diff().double().square().sum()) * query.shape[1]
        else:
            squares = query.shape[:-1].numel() * given["key"].shape[-2]
        return 2 * products * squares * query.shape[-1] // (2 if given.get("is_causal") else 1)

    count._get_raw = True  # type: ignore[attr-defined]
    return count
