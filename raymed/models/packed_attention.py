"""Causal attention over samples that lie end to end in one sequence: nothing is padded, and no sample sees another.

With flash-attn on a GPU it is that library's kernel for sequences of varying length, which transformers calls. Elsewhere it
is torch's scaled dot product, sample by sample: no matrix of the whole sequence's length squared is ever made.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

PACKED = "packed_sdpa"  # transformers' name of `packed_attention`
FLASH = "flash_attention_2"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: list[int],
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each sample to itself, as transformers calls it.

    Args:
        query: [1, heads, total, width]; `key` and `value` may have fewer heads, each for a group of the query's.
        attention_mask: None, as transformers makes none for a kernel it does not know.
        lengths: of the samples, in order; they sum to total.

    Returns:
        [1, total, heads, width], and None for the weights.
    """
    samples = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    attended = [
        F.scaled_dot_product_attention(
            *sample, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
        )
        for sample in samples
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


AttentionInterface.register(PACKED, packed_attention)


def flash_attn_version() -> str:
    """Version of the package flash-attn; empty where it is not installed.

    The package flash-attn-4 brings a module of the same name, without the kernels that `FLASH` stands for.
    """
    try:
        return version("flash-attn")
    except PackageNotFoundError:
        return ""


def use_packed(language_model: PreTrainedModel) -> None:
    """Let a causal language model attend within samples; from now on its forward needs `packing`'s arguments."""
    if language_model.config._attn_implementation != FLASH:
        language_model.set_attn_implementation(PACKED)


def packing(language_model: PreTrainedModel, lengths: Tensor) -> dict[str, Any]:
    """What a forward is told of where samples begin and end.

    Args:
        lengths: of the samples in the sequence, int64 [samples], on the host.
    """
    if language_model.config._attn_implementation != FLASH:
        return {"lengths": lengths.tolist()}
    ends = F.pad(lengths.cumsum(0), (1, 0)).int().to(language_model.device, non_blocking=True)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
