"""Losses computed a few places at a time are those of all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from device_reads import ON_CUDA_BUILDS, on_fake_cuda
from torch._subclasses.fake_tensor import FakeTensorMode

from raymed.models import answer_head
from raymed.models.answer_head import AnswerHead, Choices

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
        total, losses, _ = head(second, targets, weights)
    (total * 3).backward()

    near = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(losses, expected, **near)
    torch.testing.assert_close(second.grad, first.grad, **near)
    torch.testing.assert_close(head.weight.grad, plain.weight.grad, **near)
    assert not losses.requires_grad


@pytest.mark.parametrize("logits", [1, 4 * VOCABULARY, 2**26], ids=["one by one", "in fours", "at once"])
def test_declared_choices_are_scored_among_themselves(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions of three choices and one of two, at places that fall into different parts."""
    monkeypatch.setattr(answer_head, "LOGITS", logits)
    torch.manual_seed(0)
    head = AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False))
    targets, weights = torch.randint(0, VOCABULARY, (PLACES,)), torch.rand(PLACES)
    tokens, answers = [[4, 9, 2], [7, 29], [0, 1, 2]], torch.tensor([2, 0, 1])
    rows, shares = torch.tensor([0, 5, 10]), torch.tensor([0.5, 2.0, 1.0])
    padded = torch.tensor([[4, 9, 2], [7, 29, -1], [0, 1, 2]])
    first = torch.randn(PLACES, WIDTH, requires_grad=True)
    second = first.detach().clone().requires_grad_()

    scores = first @ head.weight.T
    expected = (F.cross_entropy(scores, targets, reduction="none") * weights).sum()
    for row, among, answer, share in zip(rows, tokens, answers, shares, strict=True):
        expected = expected + share * F.cross_entropy(scores[row, among], answer, label_smoothing=0.01)
    expected.backward()
    of_weight, head.weight.grad = head.weight.grad, None
    total, _, chosen = head(second, targets, weights, Choices(rows, padded, answers, shares, 0.01))
    total.backward()

    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(second.grad, first.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.weight.grad, of_weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chosen.exp().sum(1), torch.ones(3))
    assert float(chosen[1, 2]) == -torch.inf and not chosen.requires_grad


def test_tokens_that_fill_the_vocabulary_up_for_a_cards_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False))
    hidden = torch.randn(PLACES, WIDTH, requires_grad=True)
    targets, weights = torch.randint(0, VOCABULARY, (PLACES,)), torch.rand(PLACES)
    choices = Choices(torch.tensor([5]), torch.tensor([[7, 29]]), torch.tensor([0]), torch.ones(1), 0.01)
    seen = []
    for multiple in (1, 64):
        monkeypatch.setattr(answer_head, "ALIGNED", {"cpu": multiple})
        total, losses, chosen = head(hidden, targets, weights, choices)
        hidden.grad, head.weight.grad = None, None
        total.backward()
        seen.append([total.detach(), losses, chosen, hidden.grad, head.weight.grad])
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("answer", "smoothing", "loss"), [(0, 0.01, 0.355753), (0, 0.0, 0.340753), (1, 0.01, 2.335753)])
def test_the_choice_loss_has_the_published_values(answer: int, smoothing: float, loss: float) -> None:
    questions = Choices(torch.tensor([0]), torch.arange(4)[None], torch.tensor([answer]), torch.ones(1), smoothing)
    assert float(questions.losses(torch.tensor([[2.0, 0, 0, 0]]).log_softmax(1))) == pytest.approx(loss, abs=1e-6)


def test_a_frozen_head_gives_gradients_to_what_is_before_it_only() -> None:
    head = AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False)).requires_grad_(False)
    hidden = torch.randn(PLACES, WIDTH, requires_grad=True)
    head(hidden, torch.zeros(PLACES, dtype=torch.int64), torch.ones(PLACES))[0].backward()
    assert hidden.grad is not None and head.weight.grad is None


def test_nothing_learned_gives_a_loss_of_zero_with_gradients() -> None:
    head = AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False))
    hidden = torch.randn(0, WIDTH, requires_grad=True)
    total, *_ = head(hidden, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    total.backward()
    assert float(total.detach()) == 0 and head.weight.grad is not None


def test_a_second_pass_back_is_refused_and_not_wrong() -> None:
    head = AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False))
    total, *_ = head(torch.randn(2, WIDTH, requires_grad=True), torch.zeros(2, dtype=torch.int64), torch.ones(2))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@ON_CUDA_BUILDS
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_a_cards_products_of_short_numbers_are_made_in_float32(kind: torch.dtype) -> None:
    """Gradients are made in the forward pass, so that it shows that there are such kernels, and for which types."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    head = on_fake_cuda(AnswerHead.of(torch.nn.Linear(WIDTH, VOCABULARY, bias=False)).to(kind), mode)
    with mode:
        hidden = torch.empty(PLACES, WIDTH, dtype=kind, device="cuda", requires_grad=True)
        targets, weights = torch.empty(PLACES, dtype=torch.int64, device="cuda"), torch.ones(PLACES, device="cuda")
        total, losses, _ = head(hidden, targets, weights)
    assert total.dtype == losses.dtype == torch.float32 and total.is_cuda
