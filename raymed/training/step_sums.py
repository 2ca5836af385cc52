"""What a step sums over the workers. It travels while they go on: a sum that is waited for is a wait for the slowest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from raymed.errors import RunError

NOT_FINITE = "the loss is not finite"
GRADIENT_NOT_FINITE = "the loss's gradient is not finite"


@dataclass(frozen=True)
class StepFigures:
    """What an optimizer step computed.

    Attributes:
        step: its number in the run, from 0.
        lr: learning rate of the first parameter group in it.
        gradient_norm: global norm of its gradient, before clipping.
        sums: (sum, count) per logged name over all workers, of the loss's terms too; see `means`.
    """

    step: int
    lr: float
    gradient_norm: float
    sums: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class StepSums:
    """The sums of one step, on their way to all workers.

    Attributes:
        step: its number in the run, from 0.
        lr: learning rate of the first parameter group in it.
        names: of what is logged.
        norm: of the gradient, float64 [1], which all workers have.
        flat: of each name the sum and the count, then the batch norms' statistics: float64 [2 names + statistics].
        wait: until `flat` is that of all workers.
    """

    step: int
    lr: float
    names: tuple[str, ...]
    norm: torch.Tensor
    flat: torch.Tensor
    wait: Callable[[], object]

    @classmethod
    def begin(
        cls,
        step: int,
        lr: float,
        norm: torch.Tensor | float | None,
        sums: Mapping[str, tuple[torch.Tensor | float, float]],
        statistics: torch.Tensor,
        device: torch.device,
        begin_sum: Callable[[torch.Tensor], Callable[[], object]],
    ) -> StepSums:
        """Send what this worker has.

        Args:
            sums: (sum, count) per logged name.
            statistics: see `step_statistics`.
            begin_sum: begins to sum a tensor over workers, in place, and gives what waits for it.
        """
        values = torch.stack([_scalar(value, device) for pair in sums.values() for value in pair])
        flat = torch.cat([values, statistics.to(device)])
        total = _scalar(0.0 if norm is None else norm, device).reshape(1)
        return cls(step, lr, tuple(sums), total, flat, begin_sum(flat))

    def arrived(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm, then each sum and its count, float64 [1 + 2 names]; and the statistics, both of all workers."""
        self.wait()
        values = 2 * len(self.names)
        return torch.cat([self.norm, self.flat[:values]]), self.flat[values:]


def figures(steps: Sequence[tuple[StepSums, torch.Tensor]]) -> list[StepFigures]:
    """What steps computed, in order; here a device is waited for, once for all of them.

    Args:
        steps: each with the first of what `StepSums.arrived` gave.

    Raises:
        RunError: a loss, or its gradient, is not a finite number.
    """
    numbers = iter(torch.cat([totals for _, totals in steps]).tolist() if steps else [])
    read = []
    for step, totals in steps:
        norm, *pairs = (next(numbers) for _ in range(len(totals)))
        sums = dict(zip(step.names, zip(pairs[::2], pairs[1::2], strict=True), strict=True))
        if not all(math.isfinite(total) for total, _ in sums.values()):
            raise RunError(f"{NOT_FINITE} at step {step.step}: lower train.lr, or look at the rows of that step")
        if not math.isfinite(norm):  # DeepSpeed has left the step out, and would go on without a word
            raise RunError(f"{GRADIENT_NOT_FINITE} at step {step.step}: lower train.lr, or look at the rows of that step")
        read.append(StepFigures(step.step, step.lr, norm, sums))
    return read


def _scalar(value: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, torch.float64).reshape(())
    return torch.full((), value, dtype=torch.float64, device=device)
