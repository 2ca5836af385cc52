"""Losses computed a few places at a time are those of all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from raymed.models import answer_head
from raymed.models.answer_head import AnswerHead

PLACES, WIDTH, VOCABULARY = 11, 8, 30


@pytest.mark.parametrize("logits", [1, 4 * VOCABULARY, 2**26], ids=["one by one", "in fours", "at once"])
@pytest.mark.parametrize("autocast", [False, True])
def test_loss_and_gradients_equal_those_of_all_logits(logits: int, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_head, "LOGITS", logits)
    torch.manual_seed(0)
    plain = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    head = AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False))
    head.load_state_dict(plain.state_dict())
    targets, weights = torch.randint(0, VOCABULARY, (PLACES,)), torch.rand(PLACES)
    first = torch.randn(PLACES, WIDTH, requires_grad=True)
    second = first.detach().clone().requires_grad_()

    expected = F.cross_entropy(plain(first), targets, reduction="none")
    (expected * weights).sum().mul(3).backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, losses = head(second, targets, weights)
    (total * 3).backward()

    near = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(losses, expected, **near)
    torch.testing.assert_close(second.grad, first.grad, **near)
    torch.testing.assert_close(head.weight.grad, plain.weight.grad, **near)
    assert not losses.requires_grad


def test_a_frozen_head_gives_gradients_to_what_is_before_it_only() -> None:
    head = AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False)).requires_grad_(False)
    hidden = torch.randn(PLACES, WIDTH, requires_grad=True)
    head(hidden, torch.zeros(PLACES, dtype=torch.int64), torch.ones(PLACES))[0].backward()
    assert hidden.grad is not None and head.weight.grad is None


def test_nothing_learned_gives_a_loss_of_zero_with_gradients() -> None:
    head = AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False))
    hidden = torch.randn(0, WIDTH, requires_grad=True)
    total, _ = head(hidden, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    total.backward()
    assert float(total.detach()) == 0 and head.weight.grad is not None
