"""What a worker knows of the run that it is a part of, from whoever started it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class WorkerContext:
    """One of a run's workers, which have met (`torch.distributed`).

    Attributes:
        rank: its number, from 0.
        workers: how many there are.
        local_rank: its number on its machine, from 0.
        local_workers: how many are there.
        device: computes.
        report: passes metrics on to the job.
        is_preempted: whether its machine is being taken away.
    """

    rank: int
    workers: int
    local_rank: int
    local_workers: int
    device: torch.device
    report: Callable[[dict[str, Any]], None]
    is_preempted: Callable[[], bool]
