"""How the tools write and draw, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymed.errors import UserError


@dataclass(frozen=True)
class TextSettings:
    """How an answer is written.

    Attributes:
        temperature: below 1 keeps to the likeliest tokens, above 1 strays from them; only where it is drawn.
        max_new_tokens: longest answer in tokens; the mark that begins it counts.
        do_sample: draw each token by its probability, in place of taking the likeliest.
    """

    temperature: float = 1.0
    max_new_tokens: int = 512
    do_sample: bool = True

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature is {self.temperature}: it must be above 0 (do_sample False takes the likeliest)")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")


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
