"""A training worker's process, set up for DeepSpeed before its engine is built."""

from __future__ import annotations

import importlib
import os
import sys

import torch

from raymed.compat.deepspeed import gather_weights_at_once, leave_out_shared_memory_op
from raymed.training.cards import keep_to_share
from raymed.training.heap import keep_freed_memory

SWITCH_SECONDS = 5e-4  # after which Python's threads give way to each other


def prepare_process(device: torch.device) -> None:
    """Set DeepSpeed up for this process, before an `Engine` is built."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)  # of this thread
        keep_to_share(device)
        os.environ["LOCAL_RANK"] = str(device.index or 0)  # by which DeepSpeed chooses its card
    # DeepSpeed's autotuner, which nothing here uses, would import MLflow: a fifth of a worker's start.
    known = sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]
    importlib.import_module("deepspeed")
    if known is None:
        del sys.modules["mlflow"]
    if device.type == "cpu":
        leave_out_shared_memory_op()
        gather_weights_at_once()
        # A thread that encodes the next step may hold Python for 5 ms, and every sum over workers would wait for that long.
        sys.setswitchinterval(SWITCH_SECONDS)
