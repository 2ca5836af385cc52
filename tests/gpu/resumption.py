"""A run that goes on from a checkpoint in mid-epoch, with deterministic kernels: losses and weights are those of an
uninterrupted one, bit for bit.

python tests/gpu/run.py --parts resume
"""

from __future__ import annotations

import os

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA starts

import dataclasses
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import ray
import torch
from jsonargparse import auto_cli
from machine import open_device, process_group_of_one, show
from small_lung import open_data, small_lung

from raymed.data.stream import Staged, stage
from raymed.training.checkpoint import Progress, checkpoint_names, read_history
from raymed.training.loop import train
from raymed.training.spec import RunSpec
from raymed.training.worker_context import WorkerContext

COMPARED = ("train_loss", "val_loss", "gradient_norm")


def main(device: str = "cuda") -> None:
    """Train whole, and once more from the middle.

    Args:
        device: cuda, or cpu to try it.
    """
    computing = open_device(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # cuDNN's attention is not deterministic, nor is the memory-efficient one's backward: both are taken where only warned of
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    options = small_lung(device, "", checkpoint_steps=2, ema=0.9)
    prepared = open_data(options)
    whole, cut = (dataclasses.replace(options.spec(prepared), name=name) for name in ("whole", "cut"))
    source = stage(prepared, whole.all_rows(prepared))
    with warnings.catch_warnings(record=True) as warned, process_group_of_one(computing):
        warnings.simplefilter("always")
        trained(whole, source, computing)
        names = checkpoint_names(whole.folder)
        middle = next(name for name in reversed(names) if Progress.read(Path(whole.folder.path, name)).step)
        shutil.copytree(Path(whole.folder.path, middle), Path(cut.folder.path, middle))
        trained(cut, source, computing)
    ray.shutdown()
    unsure = sorted({str(each.message).split(".")[0] for each in warned if "determinis" in str(each.message)})
    once, again = (last_of(spec) for spec in (whole, cut))
    wrong = once != again
    lines = [f"went on from {middle}: {'NOT EQUAL' if wrong else 'bit-equal'}; val_loss {once[0][-1]['val_loss']!r}"]
    lines += [f"{again[0][-1]} in place of {once[0][-1]}"] if wrong else []
    lines += [f"PyTorch has no deterministic kernel: {each}" for each in unsure]
    show("resumption", lines, {"equal": not wrong, "history": once[0], "unsure": unsure}, computing)
    sys.exit(wrong)


def trained(spec: RunSpec, source: Staged, device: torch.device) -> None:
    """Train to the end, as a trial's process does it.

    Raises:
        RuntimeError: the run says that it failed.
    """
    spec.folder.make()
    reports: list[dict[str, Any]] = []
    train(WorkerContext(0, 1, 0, 1, device, reports.append, lambda: False), spec, source, None, True)
    if failed := [report["failed"] for report in reports if "failed" in report]:
        raise RuntimeError(failed[0])


def last_of(spec: RunSpec) -> tuple[list[dict[str, float]], bytes]:
    """What each epoch of a run computed, and the weights of its last checkpoint."""
    newest = checkpoint_names(spec.folder)[-1]
    history = [{name: epoch[name] for name in COMPARED} for epoch in read_history(spec.folder.child(newest))]
    return history, Path(spec.folder.path, newest, "model", "model.safetensors").read_bytes()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
