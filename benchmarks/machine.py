"""What a figure was measured on, and how figures are printed."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import psutil
import torch


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


def show(title: str, lines: list[str], figures: dict[str, Any]) -> None:
    """Print the figures for a person, and as one JSON line, which is the last."""
    print(f"{title} ({describe()})", *(f"  {line}" for line in lines), json.dumps(figures), sep="\n", flush=True)
