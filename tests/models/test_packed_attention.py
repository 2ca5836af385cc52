"""Samples in one packed sequence compute what each computes alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen2Config, Qwen2Model

from raymed.models import packed_attention
from raymed.models.packed_attention import FLASH, SDPA, VARLEN, packed_kernel, packing, use_packed

LENGTHS = [5, 1, 12, 7]


def _models() -> tuple[Qwen2Model, Qwen2Model]:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    ordinary = Qwen2Model._from_config(config, attn_implementation="eager")
    packed = copy.deepcopy(ordinary)
    use_packed(packed)
    return ordinary, packed


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_samples_and_their_gradients_equal_samples_one_by_one(checkpointing: bool) -> None:
    ordinary, packed = _models()
    if checkpointing:
        packed.train()
        packed.gradient_checkpointing_enable({"use_reentrant": False})
    embeddings = torch.randn(sum(LENGTHS), 32)
    weights = torch.randn(sum(LENGTHS), 32)
    # positions with gaps, as dropped tokens leave them
    positions = [torch.sort(torch.randperm(40)[:length]).values for length in LENGTHS]

    together = embeddings.clone().requires_grad_()
    hidden = packed(
        inputs_embeds=together[None],
        position_ids=torch.cat(positions)[None],
        use_cache=False,
        **packing(packed, torch.tensor(LENGTHS), embeddings),
    ).last_hidden_state[0]
    (hidden * weights).sum().backward()

    alone = embeddings.clone().requires_grad_()
    parts = [  # without a mask, transformers would take a gap for the start of another sample
        ordinary(
            inputs_embeds=sample[None],
            position_ids=places[None],
            attention_mask=torch.ones(1, len(places)),
            use_cache=False,
        ).last_hidden_state[0]
        for sample, places in zip(alone.split(LENGTHS), positions, strict=True)
    ]
    (torch.cat(parts) * weights).sum().backward()

    torch.testing.assert_close(hidden, torch.cat(parts), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.grad, alone.grad, rtol=1e-4, atol=1e-5)
    expected = dict(ordinary.named_parameters())
    for name, parameter in packed.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_change_of_one_sample_changes_no_other() -> None:
    _, packed = _models()
    embeddings = torch.randn(sum(LENGTHS), 32)
    changed = embeddings.clone()
    changed[5] += 1  # the second sample
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    with torch.no_grad():
        first, second = (
            packed(
                inputs_embeds=each[None],
                position_ids=positions,
                use_cache=False,
                **packing(packed, torch.tensor(LENGTHS), embeddings),
            ).last_hidden_state[0]
            for each in (embeddings, changed)
        )
    differs = (first != second).any(dim=1)
    assert differs.nonzero().flatten().tolist() == [5]


def test_no_score_of_the_whole_sequence_squared_is_computed() -> None:
    _, packed = _models()
    embeddings = torch.randn(1, sum(LENGTHS), 32, requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where the fused kernel cannot be taken
        packed(
            inputs_embeds=embeddings,
            position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
            use_cache=False,
            **packing(packed, torch.tensor(LENGTHS), embeddings),
        ).last_hidden_state.sum().backward()


def test_the_kernel_for_varying_lengths_is_told_what_samples_one_by_one_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has it for GPUs only: here a plain one in its place, with its arguments."""

    def plain(
        query: Tensor, key: Tensor, value: Tensor, starts: Tensor, others: Tensor, longest: int, most: int, **how: Any
    ) -> Tensor:
        assert starts is others and (longest, most) == (max(LENGTHS),) * 2 and starts.dtype == torch.int32
        assert how == {"scale": 8**-0.5}
        lengths = starts.diff().tolist()
        parts = zip(*(tensor.transpose(0, 1).split(lengths, 1) for tensor in (query, key, value)), strict=True)
        done = [F.scaled_dot_product_attention(*part, is_causal=True, scale=how["scale"], enable_gqa=True) for part in parts]
        return torch.cat(done, 1).transpose(0, 1)

    assert packed_attention._varlen.keywords["window_size"] == (-1, 0), "causal"  # type: ignore[attr-defined]
    monkeypatch.setattr(packed_attention, "_varlen", plain)
    _, packed = _models()
    embeddings = torch.randn(sum(LENGTHS), 32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    ends = F.pad(torch.tensor(LENGTHS).cumsum(0), (1, 0)).int()
    one_by_one, at_once = (
        packed(inputs_embeds=embeddings[None], position_ids=positions, use_cache=False, **told).last_hidden_state
        for told in (packing(packed, torch.tensor(LENGTHS), embeddings), {"cu_seq_lens_q": ends, "max_length_q": 12})
    )
    torch.testing.assert_close(at_once, one_by_one)


def test_the_kernel_for_varying_lengths_takes_what_it_is_told() -> None:
    """Shapes only, forward and backward: `meta` needs no GPU, and torch's versions take other arguments."""
    query = torch.empty(1, 4, sum(LENGTHS), 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    key, value = (torch.empty(1, 2, sum(LENGTHS), 8, dtype=torch.bfloat16, device="meta") for _ in range(2))
    ends = torch.empty(len(LENGTHS) + 1, dtype=torch.int32, device="meta")
    attended, _ = packed_attention.packed_attention(
        torch.nn.Identity(), query, key, value, None, scaling=1.0, cu_seq_lens_q=ends, max_length_q=max(LENGTHS)
    )
    assert attended.shape == (1, sum(LENGTHS), 4, 8)
    attended.sum().backward()
    assert query.grad is not None and query.grad.shape == query.shape


def test_the_kernel_follows_device_and_type() -> None:
    _, packed = _models()
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert packed_kernel(packed, on_gpu) == VARLEN  # type: ignore[arg-type]
    assert packed_kernel(packed, SimpleNamespace(is_cuda=True, dtype=torch.float32)) == SDPA  # type: ignore[arg-type]
    assert packed_kernel(packed, torch.zeros(1, dtype=torch.bfloat16)) == SDPA
    packed.config._attn_implementation = FLASH
    assert packed_kernel(packed, on_gpu) == FLASH  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash-attn needs a GPU")
def test_flash_attention_agrees_with_the_packed_kernel() -> None:
    pytest.importorskip("flash_attn")
    _, packed = _models()
    flash = copy.deepcopy(packed)
    flash.set_attn_implementation("flash_attention_2")
    embeddings = torch.randn(1, sum(LENGTHS), 32, device="cuda", dtype=torch.bfloat16)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].cuda()
    with torch.no_grad():
        first, second = (
            each.cuda()
            .bfloat16()(
                inputs_embeds=embeddings,
                position_ids=positions,
                use_cache=False,
                **packing(each, torch.tensor(LENGTHS), embeddings),
            )
            .last_hidden_state
            for each in (packed, flash)
        )
    torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2)
