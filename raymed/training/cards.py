"""The cards of workers: those of a run share none, which NCCL refuses without a name; those of several runs may."""

from __future__ import annotations

import socket
from datetime import timedelta

import ray
import torch
import torch.distributed as dist

from raymed.errors import UserError

CONTEXT = 2**30  # bytes of a card that a process takes besides tensors: CUDA's context, kernels, NCCL's buffers


def keep_to_share(device: torch.device) -> None:
    """Let this worker use no more of its card's memory than the share of it that it was given: others live there, too."""
    share = share_of_card()
    if share < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.0, share - CONTEXT / total), device)


def share_of_card() -> float:
    """What part of a card this worker was given; all of it where nobody gave it any, as in a job's own process."""
    if not (ray.is_initialized() and ray.get_gpu_ids()):
        return 1.0
    return min(1.0, ray.get_runtime_context().get_assigned_resources().get("GPU", 1))


def take_apart(device: torch.device, timeout: timedelta) -> dist.ProcessGroup:
    """Make sure that every worker has a card of its own, before the first use of NCCL. All workers call it together.

    Args:
        timeout: how long workers wait for each other in the group.

    Returns:
        A group of all workers for what is on the host.

    Raises:
        UserError: two workers have the same card.
    """
    host = dist.new_group(backend="gloo", timeout=timeout)
    refuse_shared(f"{socket.gethostname()}, card {torch.cuda.get_device_properties(device).uuid}", host)
    return host


def refuse_shared(card: str, group: dist.ProcessGroup | None) -> None:
    """Compare this worker's card with the others'.

    Raises:
        UserError: two workers have the same card.
    """
    cards: list[str] = [""] * dist.get_world_size(group)
    dist.all_gather_object(cards, card, group)
    shared = sorted({each for each in cards if cards.count(each) > 1})
    if shared:
        raise UserError(
            f"workers share a GPU ({'; '.join(shared)}), which NCCL refuses: give each one of its own, or lower --workers"
        )
