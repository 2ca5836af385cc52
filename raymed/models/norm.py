"""Batch normalisation whose result does not depend on how many workers share a global batch.

Ordinary running statistics are updated in every forward call, on every worker by itself, so they depend on which worker saw
which micro-batch. `StepBatchNorm` normalises by a group of pictures, which is a micro-batch, a part of one or, where a
group is divided among the workers, their micro-batches together; it only adds the groups' statistics up. Once per global
step they are summed over all workers and the running statistics take one momentum step. A global batch of n groups
therefore leaves the same state on any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class StepBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that updates its running statistics in `settle_batch_norms`, not in `forward`.

    Attributes:
        counts: whether the micro-batch under way is part of the global batch; a repeat of weight 0 leaves no trace.
        spans: whether its group is divided among all workers, which are then in the same layer at the same time.
        parts: sizes of its groups, which follow each other, where it holds several; in packs of as many pictures each.
        sums: float32 [2, features]: the sums of the groups' means and unbiased variances since the last settling.
        groups: how many groups they hold.
    """

    counts: bool = True
    spans: bool = False
    parts: tuple[int, ...] = ()
    groups: int = 0
    sums: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [batch, features, height, width] by its group's statistics in training, else by the running ones."""
        # Statistics and affine parameters in float32 whatever x is: kernels take no other mixture with bf16 inputs.
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        if not self.training:
            mean, variance = (s.float() for s in (self.running_mean, self.running_var) if s is not None)
            return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)
        if self.spans:
            y, sums = _SpanningNorm.apply(x, weight, bias, self.eps, self.counts)
        else:
            # With momentum 1 the kernel writes each group's own statistics: no second pass over x.
            parts = x.split([len(x) // sum(self.parts) * size for size in self.parts]) if self.parts else (x,)
            own = torch.zeros(len(parts), 2, self.num_features, device=x.device)
            normalised = [
                F.batch_norm(part, mean, variance, weight, bias, True, 1.0, self.eps)
                for part, (mean, variance) in zip(parts, own, strict=True)
            ]
            y, sums = (normalised[0], own[0]) if len(parts) == 1 else (torch.cat(normalised), own.sum(0))
        if self.counts and not (self.spans and dist.get_rank()):  # all workers have a spanning group's: one adds them
            self.sums = sums if self.sums is None else self.sums + sums
            self.groups += len(self.parts) or 1
        return y


class _SpanningNorm(torch.autograd.Function):
    """Normalises by the statistics of the micro-batches of all workers (Ioffe and Szegedy 2015, over the union of them).

    Two small sums over the workers, one in each direction; everything else is the kernels' own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, counts: bool
    ) -> tuple[Tensor, Tensor]:
        """(x normalised; float32 [2, features]: mean and unbiased variance of the group)."""
        own = torch.zeros(2, x.shape[1], device=x.device)
        mean, variance = torch.batch_norm_update_stats(x, own[0], own[1], 1.0)  # fast in the layout of convolutions, too
        mean, variance = mean.double(), variance.double()  # their sums cancel where the mean is large
        moments = torch.stack([torch.ones_like(mean), mean, variance + mean**2])
        moments *= x.numel() / x.shape[1] if counts else 0.0
        dist.all_reduce(moments)
        count, mean = moments[0], moments[1] / moments[0]
        variance = moments[2] / count - mean**2
        statistics = torch.stack([mean, variance * count / (count - 1).clamp(min=1)]).float()
        mean, variance = mean.float(), variance.clamp(min=0).float()
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.counts = eps, counts
        ctx.mark_non_differentiable(statistics)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), statistics

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        gradient = gradients[0].contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        # The kernel's gradients of weight and bias are the sums that the rest needs; its own of x would be of this part.
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([of_bias, of_weight]).double()
        dist.all_reduce(sums)
        deviation = (variance.double() + ctx.eps).rsqrt()
        scale = deviation if weight is None else deviation * weight
        shares = (scale / count if ctx.counts else 0 * scale) * sums
        slope = -deviation * shares[1]
        scale, slope, offset = (each.float().view(1, -1, 1, 1) for each in (scale, slope, -shares[0] - slope * mean))
        through = torch.addcmul(offset, x, slope).addcmul_(gradient, scale).to(x.dtype)
        return through, None if weight is None else of_weight, None if weight is None else of_bias, None, None


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


def step_statistics(norms: Sequence[StepBatchNorm]) -> Tensor:
    """What this worker's groups add to the statistics of a global batch, since the last settling.

    Returns:
        float64 [n]: of each norm the number of groups, then of each the sums of their means and variances.
    """
    if not norms:
        return torch.empty(0, dtype=torch.float64)
    device = norms[0].running_mean.device  # type: ignore[union-attr]
    sums = [torch.zeros(2 * n.num_features, device=device) if n.sums is None else n.sums.flatten() for n in norms]
    groups = torch.tensor([norm.groups for norm in norms], pin_memory=device.type == "cuda")
    return torch.cat([groups.to(device, non_blocking=True), *sums]).double()


def settle_batch_norms(norms: Sequence[StepBatchNorm], statistics: Tensor) -> None:
    """Update all running statistics once, by momentum, with the average over the global batch's groups.

    Every worker calls it once per global step, also one whose micro-batches were all repeats.

    Args:
        statistics: the sum of all workers' `step_statistics`.
    """
    if not norms:
        return
    counts, *parts = statistics.split([len(norms), *(2 * norm.num_features for norm in norms)])
    counted = counts > 0  # no step without groups: its average weighs nothing; reading the count would wait for the device
    steps, divisors, weighs = counted.long().unbind(), counts.clamp(min=1).unbind(), counted.float().unbind()
    for norm, part, step, divisor, weight in zip(norms, parts, steps, divisors, weighs, strict=True):
        norm.sums, norm.groups = None, 0
        mean, variance = (part.float() / divisor).view(2, -1)
        weight = weight * (0.1 if norm.momentum is None else norm.momentum)
        for running, average in ((norm.running_mean, mean), (norm.running_var, variance)):
            assert running is not None  # as `convert_batch_norms` leaves them
            running.copy_(running.float().lerp_(average.to(running.dtype).float(), weight))
        norm.num_batches_tracked.add_(step)  # type: ignore[union-attr]


def batch_norms(module: nn.Module) -> list[StepBatchNorm]:
    """Every `StepBatchNorm` inside `module`, in the order of definition."""
    return [norm for norm in module.modules() if isinstance(norm, StepBatchNorm)]


@contextmanager
def computing(norms: Sequence[StepBatchNorm], counts: bool, spans: bool, parts: tuple[int, ...] = ()) -> Iterator[None]:
    """Within it, forward and backward calls are of a micro-batch that these attributes describe."""
    for norm in norms:
        vars(norm).update(counts=counts, spans=spans, parts=parts)  # a module looks through all it has before it sets one
    try:
        yield
    finally:
        for norm in norms:
            vars(norm).update(counts=True, spans=False, parts=())
