"""How the tools read a model and pictures, write, and draw, as a person says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from raymed.errors import UserError

OWN_NAMES = {f"image.{name}": f"reading.{name}" for name in ("window", "sixteen_bit", "exif")}


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
class ReadingSettings:
    """On what a model runs, and how it sees pictures.

    Attributes:
        target_gpu_device: number of the GPU, where there is any. Of several ("0,1") the first holds the model, whole.
        max_mem_per_gpu: most of its memory, such as 40GiB; empty for all.
        vit_transform_size: longest side, shortest side and stride of pictures to the ViT (default: as in training).
        vae_transform_size: the same to the autoencoder.
        window: how CT is shown: lung, mediastinum, bone, abdomen, brain, or "WIDTH,LEVEL" (default: as in training).
        sixteen_bit: what 16-bit values mean: "bits,N", "hu,OFFSET", or "stretch" (default: as in training).
        exif: turn pictures as their EXIF data ask (apply), or refuse those (default: as in training).
    """

    target_gpu_device: str = "0"
    max_mem_per_gpu: str = "40GiB"
    vit_transform_size: tuple[int, int, int] | None = None
    vae_transform_size: tuple[int, int, int] | None = None
    window: str = ""
    sixteen_bit: str = ""
    exif: Literal["", "refuse", "apply"] = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+(\s*,\s*\d+)*", str(self.target_gpu_device)):
            raise UserError(f"target_gpu_device is {self.target_gpu_device!r}: give a GPU's number, as 0")
        if not re.fullmatch(r"(\d+(\.\d+)?GiB)?", self.max_mem_per_gpu):
            raise UserError(f"max_mem_per_gpu is {self.max_mem_per_gpu!r}: give GiB, as 40GiB, or nothing for all")

    @property
    def gpu(self) -> int:
        """Number of the GPU that holds the model."""
        return int(str(self.target_gpu_device).partition(",")[0])

    @property
    def memory(self) -> float | None:
        """Most bytes of it; None for all."""
        return float(self.max_mem_per_gpu.removesuffix("GiB")) * 2**30 if self.max_mem_per_gpu else None


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
