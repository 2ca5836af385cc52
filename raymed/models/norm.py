"""Batch normalisation whose result does not depend on how many workers share a global batch.

Ordinary running statistics are updated in every forward call, on every worker by itself, so they depend on which worker saw
which micro-batch. `StepBatchNorm` normalises by the micro-batch as usual, but only adds its statistics up; once per global
step they are summed over all workers and the running statistics take one momentum step. A global batch of n micro-batches
therefore leaves the same state on 1 worker and on n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StepBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that updates its running statistics in `settle_batch_norms`, not in `forward`.

    Attributes:
        counted: whether forward calls in training add to the sums; off for filler micro-batches of weight 0.
        sums: float32 [2, features]: the sums of the micro-batches' means and unbiased variances since the last settling.
        micro_batches: how many micro-batches they hold.
    """

    counted: bool = True
    micro_batches: int = 0
    sums: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [batch, features, height, width] by its own statistics in training, by the running ones otherwise."""
        # Statistics and affine parameters in float32 whatever x is: kernels take no other mixture with bf16 inputs.
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        if not self.training:
            mean, variance = (s.float() for s in (self.running_mean, self.running_var) if s is not None)
            return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)
        # With momentum 1 the kernel writes the micro-batch's own statistics: no second pass over x.
        statistics = torch.zeros(2, self.num_features, device=x.device)
        y = F.batch_norm(x, statistics[0], statistics[1], weight, bias, True, 1.0, self.eps)
        if self.counted:
            self.sums = statistics if self.sums is None else self.sums + statistics
            self.micro_batches += 1
        return y


def convert_batch_norms(module: nn.Module) -> nn.Module:
    """Replace every `nn.BatchNorm2d` inside `module` by a `StepBatchNorm` with the same state; returns `module`."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                settings = (child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                with torch.device("meta"):
                    norm = StepBatchNorm(*settings)
                norm._parameters, norm._buffers = child._parameters, child._buffers
                norm.train(child.training)
                setattr(parent, name, norm)
    return module


def settle_batch_norms(module: nn.Module, all_reduce: Callable[[Tensor], None]) -> None:
    """Update all running statistics once, by momentum, with the average over the global batch's micro-batches.

    Every worker calls it once per global step, also one whose micro-batches were all fillers.

    Args:
        module: the network; without a `StepBatchNorm` inside nothing happens, and `all_reduce` is not called.
        all_reduce: sums a float32 tensor [n] over all workers, in place.
    """
    norms = batch_norms(module)
    if not norms:
        return
    device = norms[0].running_mean.device  # type: ignore[union-attr]
    parts = [torch.zeros(2, norm.num_features, device=device) if norm.sums is None else norm.sums for norm in norms]
    counts = torch.tensor([float(norm.micro_batches) for norm in norms], device=device)
    flat = torch.cat([part.flatten() for part in parts] + [counts])
    all_reduce(flat)
    *flat_parts, counts = flat.split([part.numel() for part in parts] + [len(norms)])
    for norm, part, count in zip(norms, flat_parts, counts.tolist(), strict=True):
        norm.sums, norm.micro_batches = None, 0
        if count:
            mean, variance = (part / count).view(2, -1)
            momentum = 0.1 if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)  # type: ignore[union-attr]
            norm.running_var.lerp_(variance.to(norm.running_var.dtype), momentum)  # type: ignore[union-attr]
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]


def batch_norms(module: nn.Module) -> list[StepBatchNorm]:
    """Every `StepBatchNorm` inside `module`, in the order of definition."""
    return [norm for norm in module.modules() if isinstance(norm, StepBatchNorm)]


@contextmanager
def uncounted(module: nn.Module) -> Iterator[None]:
    """Within it, forward calls leave no trace in the running statistics: for filler micro-batches of weight 0."""
    norms = batch_norms(module)
    for norm in norms:
        norm.counted = False
    try:
        yield
    finally:
        for norm in norms:
            norm.counted = True
