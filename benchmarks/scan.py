"""The selective scan, forward and backward: time and memory against other ways to compute it.

    python benchmarks/scan.py             # the figures of docs/log.md: minutes on a CPU core, most in transformers' path
    python benchmarks/scan.py --length 64 --channels "[32]" --steps 1
    python benchmarks/scan.py --device cuda

The ways take turns in one process, on one thread or on a GPU; times are the fastest of so many passes, fewer where those
have taken long enough; memory is what was needed beyond the inputs, on a CPU in a process of its own.

- ours: chunks that stay in the cache, states between their borders computed again in the backward pass.
- loop: a step for each time, through autograd; the discretised arrays are made once.
- transformers: its own path without kernels, as its Mamba takes it.
- doubling: an associative scan by doubling (Blelloch 1990), through autograd.
- mambapy: its pscan, the same with a backward pass of its own, where it is installed.
- chunked: 16 steps at once by sums of logarithms, chunk after chunk, through autograd.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from jsonargparse import auto_cli
from machine import CPU, open_device, show, synchronize
from torch import Tensor

from raymed.systems.mamba_vlm.scan import selective_scan

# ruff: noqa: N803, N806 - A, B and C are what the literature calls them

STATES = 16
CHUNK = 16  # steps of `chunked`: more would leave the range of float32
Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def main(
    length: int = 784,
    channels: list[int] = [512, 1536],  # noqa: B006
    steps: int = 5,
    seconds: float = 5.0,
    device: str = "cpu",
) -> None:
    """Time the ways in turn.

    Args:
        length: Tokens.
        channels: Of the sequence, one after the other.
        steps: Timed passes of each way, after a first one.
        seconds: A way whose passes have taken as long is not timed again.
        device: cpu or cuda.
    """
    torch.set_num_threads(1)
    computing = open_device(device)
    needed_by = in_a_child if device == "cpu" else memory_of_gpu
    needed = {(name, count): needed_by(name, length, count) for count in channels for name in WAYS}
    clock = time.process_time if device == "cpu" else time.perf_counter
    figures: dict[str, dict[str, float]] = {}
    lines = []
    for count in channels:
        tensors = inputs(length, count, computing)
        results: dict[str, list[Tensor]] = {}
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(steps + 1):
            for name, way in WAYS.items():
                if sum(times[name]) < seconds:
                    synchronize(computing)
                    started = clock()
                    results[name] = passed(way, tensors)
                    synchronize(computing)
                    times[name].append(clock() - started)
        for name in WAYS:
            grown = max(1, needed[name, count])
            difference = max(
                float((a - b).abs().max() / b.abs().max()) for a, b in zip(results[name], results["loop"], strict=True)
            )
            figures[f"{name} {count}"] = {"seconds": min(times[name]), "bytes": grown, "difference": difference}
            lines.append(
                f"{count:5} channels  {name:12} {min(times[name]) * 1000:8.1f} ms (median "
                f"{statistics.median(times[name]) * 1000:8.1f})  {grown / 2**20:7.1f} MiB, "
                f"{grown / length:9.0f} bytes a token  off the loop by {difference:.1e}"
            )
        others = [figures[f"{name} {count}"] for name in WAYS if name != "ours"]
        fastest = min(others, key=lambda way: way["seconds"])
        ours = figures[f"ours {count}"]
        lines.append(
            f"{count:5} channels  ours is {fastest['seconds'] / ours['seconds']:.1f} times as fast as the best other, "
            f"{ours['bytes'] / fastest['bytes']:.2f} of its memory"
        )
    show(f"selective scan, {length} tokens, {STATES} states", lines, figures, computing)


def inputs(length: int, channels: int, device: torch.device = CPU) -> list[Tensor]:
    """x, delta, A, B, C of one row, as a layer at its start has them."""
    torch.manual_seed(0)
    x, B, C = (torch.randn(1, length, size) for size in (channels, STATES, STATES))
    delta = torch.empty(1, length, channels).uniform_(1e-3, 1e-1)
    A = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    return [tensor.to(device).requires_grad_() for tensor in (x, delta, A, B, C)]


def passed(way: Way, tensors: list[Tensor]) -> list[Tensor]:
    """The output of a forward pass, and the gradients of its mean square."""
    for tensor in tensors:
        tensor.grad = None
    y = way(*tensors)
    y.square().mean().backward()
    return [y.detach(), *(tensor.grad.clone() for tensor in tensors if tensor.grad is not None)]


def in_a_child(name: str, length: int, channels: int) -> int:
    """`memory` in a process that has computed nothing before."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(memory, (name, length, channels))


def memory(name: str, length: int, channels: int) -> int:
    """Bytes by which the most that the process ever held grew in a pass; a small pass first loads what is loaded once."""
    way = WAYS[name]
    passed(way, inputs(32, 32))
    tensors = inputs(length, channels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passed(way, tensors)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def memory_of_gpu(name: str, length: int, channels: int) -> int:
    """Bytes by which the most that lay in the GPU's memory grew in a pass."""
    tensors = inputs(length, channels, open_device("cuda"))
    passed(WAYS[name], tensors)
    for tensor in tensors:
        tensor.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    passed(WAYS[name], tensors)
    return torch.cuda.max_memory_allocated() - before


def ours(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return selective_scan(x, delta, A, B, C)[0]


def discretised(x: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta A) and delta B x, [batch, length, channels, states]."""
    return torch.exp(delta[..., None] * A), (delta * x)[..., None] * B[:, :, None]


def loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    decay, values = discretised(x, delta, A, B)
    state, states = torch.zeros_like(values[:, 0]), []
    for factor, value in zip(decay.unbind(1), values.unbind(1), strict=True):
        state = factor * state + value
        states.append(state)
    return (torch.stack(states, 1) @ C[..., None])[..., 0]


def transformers(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    x, delta, B, C = (tensor.transpose(1, 2) for tensor in (x, delta, B, C))
    return mamba_selective_scan(x, delta, A, B, C).transpose(1, 2)


def doubling(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    decay, states = discretised(x, delta, A, B)
    distance = 1
    while distance < x.shape[1]:
        states = torch.cat([states[:, :distance], states[:, distance:] + decay[:, distance:] * states[:, :-distance]], 1)
        decay = torch.cat([decay[:, :distance], decay[:, distance:] * decay[:, :-distance]], 1)
        distance *= 2
    return (states @ C[..., None])[..., 0]


def mambapy(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    pscan = importlib.import_module("mambapy.pscan").pscan
    return (pscan(*discretised(x, delta, A, B)) @ C[..., None])[..., 0]


def chunked(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    state, outputs = x.new_zeros(x.shape[0], 1, x.shape[2], A.shape[1]), []
    for begin in range(0, x.shape[1], CHUNK):
        part = slice(begin, begin + CHUNK)
        exponent = (delta[:, part, :, None] * A).cumsum(1)
        values = (delta[:, part] * x[:, part])[..., None] * B[:, part, None]
        states = torch.exp(exponent) * (state + (values * torch.exp(-exponent)).cumsum(1))
        outputs.append((states @ C[:, part, :, None])[..., 0])
        state = states[:, -1:]
    return torch.cat(outputs, 1)


WAYS: dict[str, Way] = {
    "ours": ours,
    "loop": loop,
    "transformers": transformers,
    "doubling": doubling,
    "chunked": chunked,
    **({"mambapy": mambapy} if importlib.util.find_spec("mambapy") else {}),
}

if __name__ == "__main__":
    auto_cli(main, as_positional=False)
