"""Pictures, drawn from noise along the flow, guided by text and by the pictures they are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymed.errors import UserError
from raymed.systems.unimedvl.context import Context, read_latents

if TYPE_CHECKING:
    from raymed.systems.unimedvl.network import UniMedVL
    from raymed.systems.unimedvl.tokens import TextTokens

SMALLEST = 1e-8  # keeps a norm of 0 from dividing


@dataclass(frozen=True)
class DrawingSettings:
    """How a picture is drawn.

    Attributes:
        cfg_text_scale: how far the velocity is driven from what it would be without the instruction; 1 is not at all.
        cfg_img_scale: the same for the pictures that were given.
        num_timesteps: points in time from noise to picture, both ends included.
        timestep_shift: above 1 more of them are near the noise.
        cfg_interval: times of the flow with guidance, which goes from 1, the noise, to 0: the first excluded, the second
            included.
        cfg_renorm_type: what a guided velocity is made no longer than the plain one by: text_channel (each token, after the
            text's guidance), channel (each token), global (the whole picture).
        cfg_renorm_min: it is shortened to this share at most.
    """

    cfg_text_scale: float = 4.0
    cfg_img_scale: float = 2.0
    num_timesteps: int = 50
    timestep_shift: float = 3.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    cfg_renorm_type: Literal["text_channel", "channel", "global"] = "text_channel"
    cfg_renorm_min: float = 0.0

    def __post_init__(self) -> None:
        if self.num_timesteps < 2:
            raise UserError(f"num_timesteps is {self.num_timesteps}: there must be at least 2, noise and picture")
        if self.timestep_shift <= 0:
            raise UserError(f"timestep_shift is {self.timestep_shift}: it must be above 0")
        if len(self.cfg_interval) != 2 or not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            raise UserError(f"cfg_interval is {self.cfg_interval}: it must be two times between 0 and 1, the lower first")
        if not 0 <= self.cfg_renorm_min <= 1:
            raise UserError(f"cfg_renorm_min is {self.cfg_renorm_min}: it must be between 0 and 1")

    def guided(self, time: float) -> bool:
        """Whether there is guidance at this time of the flow."""
        start, end = self.cfg_interval
        return start < time <= end

    @property
    def text_guided(self) -> bool:
        return self.cfg_text_scale > 1

    @property
    def image_guided(self) -> bool:
        """Guidance by pictures is on top of that by text."""
        return self.text_guided and self.cfg_img_scale > 1


class Contexts(NamedTuple):
    """What a picture is drawn from.

    Attributes:
        full: all that was read.
        without_text: what was read before the last text.
        without_images: all texts, and no picture.
    """

    full: Context
    without_text: Context
    without_images: Context


def scheduler(settings: DrawingSettings) -> Any:
    """diffusers' FlowMatchEulerDiscreteScheduler, set to these times."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    steps: Any = FlowMatchEulerDiscreteScheduler(shift=settings.timestep_shift)
    steps.set_timesteps(sigmas=np.linspace(1, 0, settings.num_timesteps)[:-1].tolist())
    return steps


@torch.no_grad()
def draw(
    network: UniMedVL,
    contexts: Contexts,
    tokens: TextTokens,
    rows: int,
    columns: int,
    settings: DrawingSettings,
    noise: Tensor,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Tensor:
    """Latent tokens of a picture, float32 [rows * columns, width].

    The conditions were read before and are read no more; all branches of the guidance are one batch.

    Args:
        noise: what it starts from, float32 [rows * columns, width].
        progress: told of each step done, and of how many there are.
    """
    branches = [contexts.full]
    if settings.text_guided:
        branches.append(contexts.without_text)
    if settings.image_guided:
        branches.append(contexts.without_images)
    plain, guided = contexts.full, Context.stack(branches)
    steps = scheduler(settings)
    latents = noise.to(network.device)
    times = steps.sigmas.tolist()[:-1]
    for step, (time, scheduled) in enumerate(zip(times, steps.timesteps, strict=True)):
        readers = guided if settings.guided(time) else plain
        at = torch.full((len(latents),), time, device=network.device)
        last, _ = read_latents(network, readers, tokens, latents, at, rows, columns)
        velocities = network.llm2vae(last).float()
        latents = steps.step(guide(list(velocities), settings), scheduled, latents).prev_sample
        progress(step + 1, len(times))
    return latents


def guide(velocities: list[Tensor], settings: DrawingSettings) -> Tensor:
    """The guided velocity (Ho and Salimans 2022, arXiv:2207.12598; for two conditions Brooks et al. 2023, 2211.09800).

    Args:
        velocities: of all that was read; with guidance also without the text, and then without pictures; each
            [tokens, width].
    """
    full, *others = velocities
    if not others:
        return full
    without_text = others[0]
    guided = without_text + settings.cfg_text_scale * (full - without_text)
    if settings.cfg_renorm_type == "text_channel":
        guided = _renormed(guided, full, settings)
    if len(others) > 1:
        guided = others[1] + settings.cfg_img_scale * (guided - others[1])
    return guided if settings.cfg_renorm_type == "text_channel" else _renormed(guided, full, settings)


def _renormed(guided: Tensor, full: Tensor, settings: DrawingSettings) -> Tensor:
    """`guided` made no longer than `full` (Lin et al. 2024, arXiv:2305.08891, section 3.4, with norms)."""
    if settings.cfg_renorm_type == "global":
        share = full.norm() / (guided.norm() + SMALLEST)
    else:
        share = full.norm(dim=1, keepdim=True) / (guided.norm(dim=1, keepdim=True) + SMALLEST)
    return guided * share.clamp(settings.cfg_renorm_min, 1.0)
