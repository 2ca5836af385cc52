"""A device computes in a type that it has instructions for."""

import pytest
import torch

from raymed.models import precision
from raymed.models.precision import arithmetic

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("asked", ["auto", "fp32", "bf16", "amp"])
def test_a_device_without_bf16_computes_in_fp32_and_a_wish_for_bf16_is_answered(asked, monkeypatch, caplog):
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    precision._warn.cache_clear()
    assert [arithmetic(asked, CPU) for _ in range(2)] == ["fp32", "fp32"]
    told = caplog.messages.count("this CPU has no instructions for bf16: computing in fp32")
    assert told == (asked in ("bf16", "amp")), "once, where it was asked for"


def test_a_gpu_without_bf16_is_told_to_compute_in_fp32_and_why_not_in_fp16(monkeypatch, caplog):
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    precision._warn.cache_clear()
    assert arithmetic("auto", GPU) == "fp32"
    assert "this GPU has no instructions for bf16: computing in fp32 (fp16," in caplog.text


def test_a_device_with_bf16_computes_what_was_asked_and_by_itself_only_a_gpu_does(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert [arithmetic(asked, CPU) for asked in ("auto", "fp32", "bf16", "amp")] == ["fp32", "fp32", "bf16", "amp"]
    assert arithmetic("auto", GPU) == "bf16"
