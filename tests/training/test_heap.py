"""What a step frees must not go back to the system: a third of a small network's step went into getting it back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from raymed.training.heap import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    blocks = [torch.ones(16, 2**18) for _ in range(12)]  # 16 MiB each, as a network's activations
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


def _page_faults(mode: str) -> float:
    """Of a step, in a process that begins with glibc's usual thresholds, which otherwise grow with luck."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", STEPS, mode]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    assert _page_faults("kept") < 0.01 * _page_faults("given back")
