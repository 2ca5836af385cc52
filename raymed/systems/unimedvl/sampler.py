"""Pictures, drawn from noise along the flow, guided by text and by the pictures they are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymed.systems.unimedvl.context import Context, read_latents
from raymed.systems.unimedvl.tool_settings import DrawingSettings

if TYPE_CHECKING:
    from raymed.systems.unimedvl.network import UniMedVL
    from raymed.systems.unimedvl.tokens import TextTokens

SMALLEST = 1e-8  # keeps a norm of 0 from dividing


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
