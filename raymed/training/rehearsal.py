"""A micro-batch of a run, tried out on a device before the run: whether it can be computed, how long that takes, and memory.

What the forward pass keeps for the backward pass is counted as autograd keeps it, on any device; on a GPU the peak is
measured.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from raymed.data.micro_batches import Division
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.models.precision import arithmetic
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.training.spec import RunSpec

TIMES = 3  # that a micro-batch is computed: the first is slower


@dataclass(frozen=True)
class Rehearsal:
    """What a micro-batch took.

    Attributes:
        records: how many it holds.
        seconds: its forward and backward pass.
        activations: bytes that the forward pass keeps for the backward pass, without weights.
        peak: most bytes that the GPU held at once, weights and gradients too; None on a CPU.
        loss: of the micro-batch.
    """

    records: int
    seconds: float
    activations: int
    peak: int | None
    loss: float


def rehearse(spec: RunSpec, prepared: Prepared, module: nn.Module, device: torch.device) -> Rehearsal:
    """Forward and backward of the first micro-batch of a run.

    Args:
        module: the run's network; it is moved to the device, in the type that is computed in, and left with gradients.

    Raises:
        UserError: the loss is not finite.
        RuntimeError: as PyTorch raises it, where memory does not suffice.
    """
    computed = arithmetic(spec.train.precision, device)
    module = module.to(device, torch.bfloat16 if computed == "bf16" else None).train()
    batch = first_batch(spec, prepared).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    kept, times = activation_bytes(spec, module, batch), []
    for _ in range(TIMES):
        _wait(device)
        started = time.perf_counter()
        with _computing(spec, device):
            loss = spec.recipe.compute_loss(module, batch).mean(batch.units)
        loss.backward()
        _wait(device)
        times.append(time.perf_counter() - started)
    if not torch.isfinite(loss):
        raise UserError("the loss of the first micro-batch is not finite: check the model folder and the settings")
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Rehearsal(len(batch.ids), min(times), kept, peak, float(loss.detach()))


def first_batch(spec: RunSpec, prepared: Prepared) -> Batch:
    """The first micro-batch of a run, encoded."""
    ((micro, *_), *_) = Division(spec.train.packs_at_once).rounds(spec.plan(prepared, 0).batches[0])
    records = prepared.read(np.array([row for pack in micro.packs for row in pack]))
    return spec.recipe.encode(records, TrainingPass(spec.seed, 0))


def activation_bytes(spec: RunSpec, module: nn.Module, batch: Batch, limit: float = math.inf) -> int:
    """Bytes that the forward pass of a micro-batch keeps for its backward pass; what is kept twice counts once, and weights
    not at all. Nothing is kept while it is counted, so it takes little memory.

    Args:
        limit: seconds that it may take.

    Raises:
        TimeoutError: it takes longer.
    """
    others = [*module.parameters(), *module.buffers(), *batch.tensors.values()]
    weights, end = {each.untyped_storage().data_ptr() for each in others}, time.monotonic() + limit
    there: dict[int, StorageWeakRef] = {}
    total = 0

    def count(tensor: Tensor) -> None:
        nonlocal total
        if time.monotonic() > end:
            raise TimeoutError(f"the forward pass of a micro-batch takes longer than {limit:.0f} s here")
        storage = tensor.untyped_storage()
        before = there.get(storage.data_ptr())
        if storage.data_ptr() in weights or (before is not None and not before.expired()):
            return
        there[storage.data_ptr()] = StorageWeakRef(storage)  # the place may be another tensor's later
        total += storage.nbytes()

    def refuse(nothing: None) -> Tensor:
        raise RuntimeError("nothing was kept for a backward pass")

    device = next(module.parameters()).device
    with torch.autograd.graph.saved_tensors_hooks(count, refuse), _computing(spec, device):
        spec.recipe.compute_loss(module.train(), batch)
    return total


@contextlib.contextmanager
def _computing(spec: RunSpec, device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, arithmetic(spec.train.precision, device) == "amp"):
        yield


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
