"""Flow matching on latents: a straight path from a picture at time 0 to noise at time 1, and the velocity along it
(Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

Value = TypeVar("Value", float, Tensor, np.ndarray)


def shift_time(time: Value, shift: float) -> Value:
    """Move times towards noise, for pictures of many pixels (Esser et al. 2024, arXiv:2403.03206, eq. 23); 1 leaves them."""
    return shift * time / (1 + (shift - 1) * time)


def draw_times(generator: np.random.Generator, count: int, shift: float) -> np.ndarray:
    """Times to train at: logistic of a normal draw, then moved by `shift`; float32 [count]."""
    times = 1 / (1 + np.exp(-generator.standard_normal(count)))
    return shift_time(times, shift).astype(np.float32)


def noisy(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Where latents are at a time on their way to the noise.

    Args:
        latents, noise: [tokens, width].
        times: [tokens].
    """
    times = times[:, None]
    return (1 - times) * latents + times * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """The velocity along the path, which is the same at all times."""
    return noise - latents


def flow_losses(predicted: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the predicted velocity, mean over a token's numbers; float32 [tokens]."""
    return (predicted.float() - velocity(latents, noise)).square().mean(1)
