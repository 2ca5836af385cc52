"""A run of one worker, in the process that drives it: between two such runs no process starts, and nothing is imported."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from raymed.cluster.connection import is_own
from raymed.errors import StorageError
from raymed.storage.availability import is_denial, is_refusal
from raymed.training.frozen import Source
from raymed.training.heap import give_back_freed_memory
from raymed.training.loop import train
from raymed.training.rendezvous import meet_nobody
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.worker_context import WorkerContext

BEGUN = "begun"  # what a run reports first


def suffices(workers: int) -> bool:
    """Whether runs need no process but their driver's: on a machine that is the job's own, which nobody takes away."""
    return workers == 1 and is_own()


def leaves_nothing(train: TrainSettings) -> bool:
    """Whether the process of such a run may have another one after it. After ZeRO 3 DeepSpeed keeps the weights of every
    engine, and puts a linear layer of its own in place of torch's (runtime/zero/partitioned_param_coordinator.py,
    `__params_to_release`; partition_parameters.py, `Init`)."""
    return train.zero_stage < 3


def train_alone(
    spec: RunSpec,
    source: Source,
    stop_decisions: ActorHandle | None,
    keep_all: bool,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Train, or go on with the run of that name, to its end.

    Args:
        keep_all: see `train`.

    Raises:
        StorageError: a disk refuses what is written.
        OSError: a storage was away at a moment that nobody waits at; the run goes on from its newest checkpoint.
    """
    report({BEGUN: 1.0})  # it waits for no machine any more
    device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
    if not dist.is_initialized():  # and so it stays: DeepSpeed remembers the groups that it made in it
        meet_nobody(device)
    try:
        spec.folder.make()
        train(WorkerContext(0, 1, 0, 1, device, report, lambda: False), spec, source, stop_decisions, keep_all)
    except OSError as error:
        if is_refusal(error) and not is_denial(error):  # a machine may lack credentials for a moment
            raise StorageError.of(error) from error
        raise
    finally:
        gc.collect()  # an engine's parts name one another
        if device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            give_back_freed_memory()
