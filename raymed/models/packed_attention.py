"""Causal attention over samples that lie end to end in one sequence: nothing is padded, and no sample sees another.

On a GPU in bf16 one call attends in all samples: of flash-attn where that is installed, which transformers makes, and else
of torch's own kernel for varying lengths. Elsewhere it is torch's scaled dot product, sample by sample. No matrix of the
whole sequence's length squared is ever made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

PACKED = "packed"  # transformers' name of `packed_attention`
SDPA, VARLEN = "packed_sdpa", "packed_varlen"  # what it computes with
FLASH = "flash_attention_2"
# torch 2.11 takes fewer heads of keys without being told so, and has no word for it
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
_varlen: Callable[..., Any] = partial(varlen_attn, window_size=(-1, 0), **_GROUPED)  # type: ignore[arg-type]  # causal


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    lengths: list[int] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each sample to itself, as transformers calls it.

    Args:
        query: [1, heads, total, width]; `key` and `value` may have fewer heads, each for a group of the query's.
        attention_mask: None, as transformers makes none for a kernel it does not know.
        lengths: of the samples, in order; they sum to total. For torch's scaled dot product.
        cu_seq_lens_q: where each sample begins and the last one ends, int32 [samples + 1], in place of `lengths`. For
            torch's kernel for varying lengths, which knows no dropout.
        max_length_q: of the longest sample.

    Returns:
        [1, total, heads, width], and None for the weights.
    """
    if lengths is None:
        bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        heads = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [total, heads, width]
        return _varlen(*heads, *bounds, scale=scaling)[None], None
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


def packed_kernel(language_model: PreTrainedModel, embeddings: Tensor) -> str:
    """What attends in a language model that takes such embeddings."""
    if language_model.config._attn_implementation == FLASH:
        return FLASH
    return VARLEN if embeddings.is_cuda and embeddings.dtype in (torch.bfloat16, torch.float16) else SDPA


def packing(language_model: PreTrainedModel, lengths: Tensor, embeddings: Tensor) -> dict[str, Any]:
    """What a forward is told of where samples begin and end.

    Args:
        lengths: of the samples in the sequence, int64 [samples], on the host.
        embeddings: of the sequence, [total, width], on the device and in the type that are computed in.
    """
    if packed_kernel(language_model, embeddings) == SDPA:
        return {"lengths": lengths.tolist()}
    ends = F.pad(lengths.cumsum(0), (1, 0)).int().to(embeddings.device, non_blocking=True)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
