"""The type that a device computes in: bf16 only where there are instructions for it."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Literal

import torch

from raymed.models.settings import Precision

Arithmetic = Literal["fp32", "bf16", "amp"]

log = logging.getLogger("raymed")


def arithmetic(precision: Precision, device: torch.device) -> Arithmetic:
    """What is computed in where `precision` is asked for; `auto` is bf16 on GPUs that have it.

    A CPU without bf16 instructions takes hundreds of times as long in bf16 as in fp32, which is the more exact: it computes
    in fp32 whatever is asked for, and says so.
    """
    if precision == "auto" and device.type == "cpu":
        return "fp32"
    if precision != "fp32" and not has_bf16(device):
        _warn(device.type)
        return "fp32"
    return "bf16" if precision == "auto" else precision


def has_bf16(device: torch.device) -> bool:
    """Whether the device's matrix kernels take bf16."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@lru_cache
def _warn(device: str) -> None:
    fp16 = " (fp16, whose losses have to be scaled and whose steps are left out where they overflow, is not offered)"
    name, besides = ("GPU", fp16) if device == "cuda" else ("CPU", "")
    log.warning("this %s has no instructions for bf16: computing in fp32%s", name, besides)
