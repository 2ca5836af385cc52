"""Processes of workers without Ray, forked from one that has imported what they need."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch.multiprocessing


def preload() -> None:
    """What the process that such processes are forked from imports; it starts with the first of them."""
    compiler = "deepspeed.runtime.zero.muon.muon_optimizer"  # PyTorch's, by way of an optimizer that nothing here uses
    towers = "transformers.models.internvl.modeling_internvl"
    multiprocessing.set_forkserver_preload(["raymed.training.engine", "deepspeed", compiler, towers])


def run_workers(work: Callable[..., None], arguments: tuple[Any, ...] = (), workers: int = 1) -> None:
    """Run `work(worker, *arguments)` in each of so many processes to its end; an error in one is raised."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29519", "OMP_NUM_THREADS": "1"}
    preload()
    torch.multiprocessing.start_processes(work, arguments, workers, start_method="forkserver")
