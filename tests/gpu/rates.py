"""What the card can do by itself: matrix products, copies within its memory, and copies from and to the machine's.

python tests/gpu/run.py --parts rate
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from jsonargparse import auto_cli
from machine import matrix_rate, open_device, show, synchronize

from raymed.doctor.checks import kernels

TIMES = 5


def main(device: str = "cuda") -> None:
    """Measure each rate.

    Args:
        device: cuda, or cpu to try it.
    """
    computing = open_device(device)
    size = 2**30 if device == "cuda" else 2**24
    there, beside = (torch.ones(size, dtype=torch.uint8, device=computing) for _ in range(2))
    pinned = torch.ones(size, dtype=torch.uint8, pin_memory=device == "cuda")
    rate = matrix_rate(computing)
    copies = {
        "within": lambda: beside.copy_(there),
        "to the device": lambda: there.copy_(pinned, non_blocking=True),
        "from the device": lambda: pinned.copy_(there, non_blocking=True),
    }
    speeds = {name: size / seconds(copy, computing) for name, copy in copies.items()}
    lines = [f"matrix products {rate / 1e12:.2f} TFLOP/s ({'bf16, 8192' if device == 'cuda' else 'float32, 2048'} squared)"]
    lines += [f"copies, GB/s: {', '.join(f'{name} {speed / 1e9:.1f}' for name, speed in speeds.items())}"]
    lines += [f"{finding.subject}: {finding.text}" for finding in kernels()]
    show("rates", lines, {"matrix": rate, "copies": speeds}, computing)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """The median of some, after a first one."""
    times = []
    for _ in range(TIMES + 1):
        synchronize(device)
        started = time.perf_counter()
        action()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
