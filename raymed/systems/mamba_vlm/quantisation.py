"""The language model's matrices in 8 bits, where bitsandbytes can."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from raymed.errors import UserError
from raymed.systems.mamba_vlm.language_model import MambaLanguageModel

WAY_A = "python jobs/check_image_to_text.py --llm_device auto --max_visual_tokens 32"


def to_int8(model: MambaLanguageModel) -> None:
    """Replace the projections of every mixer by matrices of 8 bits, which become so when they are moved to the GPU.

    Raises:
        UserError: bitsandbytes or a GPU is missing; names the other way to fit into memory.
    """
    try:
        library = importlib.import_module("bitsandbytes")
        reason = None if torch.cuda.is_available() else "there is no GPU here"
    except (ImportError, OSError, RuntimeError) as error:
        reason = f"bitsandbytes cannot be used ({error})"
    if reason is not None:
        raise UserError(f"8 bits cannot be had: {reason}. Leave --llm_8bit out; a check fits into little memory by: {WAY_A}")
    for layer in model.backbone.layers:
        mixer = layer.mixer
        for name in ("in_proj", "out_proj"):
            setattr(mixer, name, _quantised(library, getattr(mixer, name)))


def _quantised(library: object, linear: nn.Linear) -> nn.Module:
    module = library.nn.Linear8bitLt(  # type: ignore[attr-defined]
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False
    )
    module.load_state_dict(linear.state_dict())
    return module
