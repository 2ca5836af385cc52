"""Fused kernels of Mamba blocks: taken on a GPU where mamba-ssm and causal-conv1d are installed, and said."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch


@lru_cache
def fused_scan() -> Callable[..., Any] | None:
    """mamba-ssm's selective scan, or None where it cannot be imported."""
    return _function("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")


@lru_cache
def fused_convolution() -> Callable[..., Any] | None:
    """causal-conv1d's convolution, or None where it cannot be imported."""
    return _function("causal_conv1d", "causal_conv1d_fn")


def described(device: torch.device) -> str:
    """Which kernels compute a Mamba block on a device, in words."""
    if device.type != "cuda":
        return f"selective scan and convolution in torch, on {device.type}"
    scan = "torch (mamba-ssm is not installed)" if fused_scan() is None else "mamba-ssm's kernel"
    convolution = "torch (causal-conv1d is not installed)" if fused_convolution() is None else "causal-conv1d's kernel"
    return f"selective scan: {scan}; convolution: {convolution}"


def _function(module: str, name: str) -> Callable[..., Any] | None:
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, OSError):  # OSError: built for another CUDA
        return None
