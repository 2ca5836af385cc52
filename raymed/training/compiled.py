"""Blocks of a network, compiled one by one by torch.compile: fewer kernels, each with more to do.

Weights keep their names, so checkpoints, exports and ZeRO 1 and 2 are as without. What is drawn in a block, dropout and drop
path, is drawn anew, as another seed would; all else is equal but for rounding.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.compiler.config as limits
from torch import nn

from raymed.models.norm import batch_norms
from raymed.training.settings import TrainSettings

PLACE = "TORCHINDUCTOR_CACHE_DIR"  # where PyTorch keeps kernels, and the graphs that they are of
GIVEN = os.environ.get(PLACE)  # by a person: PyTorch sets it, too, once it is used
COMPILERS = ("gcc", "cc", "clang")
RECOMPILES = 8  # of a block, as torch allows them: training and judging, a first size and any other

log = logging.getLogger("raymed")


def compile_blocks(module: nn.Module, settings: TrainSettings, device: torch.device) -> str:
    """Compile a network's blocks, where the settings ask for it, before DeepSpeed wraps it. Each compiles when it is first
    called, and once more, for batches of any size from two up, when a size changes: no batch need be filled up.

    Returns:
        What became of it, in words.
    """
    if settings.compile == "off":
        return "off"
    reason = obstacle(settings, device)
    found = [] if reason else list(blocks(module))
    if not found:
        reason = reason or "this network has no blocks without batch norms"
        log.warning("train.compile %s: nothing is compiled, because %s", settings.compile, reason)
        return f"off: {reason}"
    os.environ.setdefault(
        "TORCHINDUCTOR_COMPILE_THREADS", "1"
    )  # else each worker starts as many processes as there are CPUs
    if device.type == "cuda":  # for a CPU g++ writes in place: a process that is killed would leave a torn file for good
        keep_compiled()
    torch.compiler.reset()  # an earlier run of this process has left its own
    # Otherwise all blocks count as one, which is given up after some sizes of batches.
    apart = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
    if not apart:  # before torch 2.13 they do
        limits.recompile_limit = max(limits.recompile_limit, RECOMPILES * len(found))
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limits.recompile_limit)
    for block in found:
        block.compile(**apart)
    return f"{len(found)} blocks"


def keep_compiled() -> None:
    """Have PyTorch keep what it compiles where other trials' processes and later runs find it, also once /tmp is empty."""
    with contextlib.suppress(OSError, RuntimeError):  # no home, or nobody may write there: it lies where PyTorch puts it
        place = Path(GIVEN or Path.home() / ".raymed" / "compiled")
        place.mkdir(parents=True, exist_ok=True)
        if os.access(place, os.W_OK | os.X_OK):
            os.environ[PLACE] = str(place)


def obstacle(settings: TrainSettings, device: torch.device) -> str:
    """Why a network is not compiled; empty where it is."""
    if settings.zero_stage == 3:
        return "ZeRO 3 gathers weights before every layer, where a graph would break"
    if settings.compile == "on":
        return ""
    if device.type == "cpu":
        return "there is no GPU (on compiles all the same)"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not any(map(shutil.which, COMPILERS)):
        return "triton needs a C compiler, and there is none"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "triton needs Python.h (the package python3-dev), which is missing"
    return ""


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network: what its innermost lists hold. Not those with batch norms, which note what they see."""
    for child in module.children():
        if not isinstance(child, nn.ModuleList) or any(isinstance(part, nn.ModuleList) for part in [*child.modules()][1:]):
            yield from blocks(child)
        else:
            yield from (block for block in child if not batch_norms(block))
