"""The output layer of a language model that is only asked where an answer is learned, a few places at a time.

With 151,674 tokens in the vocabulary, the logits of 4,096 places take 2.3 GiB, and training takes several times that. Here
the cross-entropy and its gradient are computed together, so many places at a time that their logits stay small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGITS = 2**26  # at once: 256 MiB in float32
ALIGNED = {"cuda": 64}  # products on such a device are slower where their size is no multiple of it; 151,674 is none of 8


class Choices(NamedTuple):
    """Questions with declared choices, whose answers are scored a second time among the choices alone.

    Attributes:
        rows: which of the places predicts the answer, int64 [questions].
        tokens: the choices' tokens, int64 [questions, most choices]; -1 behind the last where there are fewer.
        answers: which choice is right, int64 [questions].
        weights: of the questions in the sum, float32 [questions].
        smoothing: share of the target that is spread evenly over the declared choices.
    """

    rows: Tensor
    tokens: Tensor
    answers: Tensor
    weights: Tensor
    smoothing: float

    @property
    def targets(self) -> Tensor:
        """Smoothed, float32 [questions, most choices]."""
        declared = (self.tokens >= 0).float()
        spread = self.smoothing * declared / declared.sum(1, keepdim=True)
        right = torch.full_like(self.weights, 1 - self.smoothing)
        return spread.scatter_add(1, self.answers[:, None], right[:, None])

    def losses(self, log_probabilities: Tensor) -> Tensor:
        """Cross-entropy of each question among its choices, float32 [questions]."""
        return -(self.targets * log_probabilities.masked_fill(self.tokens < 0, 0)).sum(1)


class AnswerHead(nn.Linear):
    """An output layer without bias. Asked for losses it is still called once, as ZeRO 3 wants it."""

    @classmethod
    def of(cls, layer: nn.Linear) -> AnswerHead:
        """The head with the weights of `layer`, under the same name."""
        with torch.device("meta"):
            head = cls(layer.in_features, layer.out_features, bias=False)
        head.weight = layer.weight
        return head

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        choices: Choices | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor | None]:
        """Logits, or, with targets, their cross-entropy.

        Args:
            hidden: [..., width]; [places, width] with targets.
            targets: token ids, int64 [places].
            weights: of the places in the sum, float32 [places].
            choices: questions whose loss is added.

        Returns:
            Logits [..., vocabulary]; or the weighted sum of the losses and, without a gradient, the cross-entropies, float32
            [places], and the logarithms of the choices' probabilities, float32 [questions, most choices].
        """
        if targets is None or weights is None:
            return super().forward(hidden)
        at_once = max(1, LOGITS // self.out_features)
        filler = -self.out_features % ALIGNED.get(hidden.device.type, 1)
        return _CrossEntropy.apply(hidden, self.weight, targets, weights, choices, at_once, filler, torch.is_grad_enabled())


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        choices: Choices | None,
        at_once: int,
        filler: int,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        rows, ctx.kept = len(weight), weight.dtype
        of_hidden = torch.empty_like(hidden) if training and ctx.needs_input_grad[0] else None
        computed = _computed_in(hidden)
        hidden, weight = hidden.to(computed), weight.to(computed)
        weight = F.pad(weight, (0, 0, 0, filler)) if filler else weight  # tokens that nothing can be, in a copy
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if training and ctx.needs_input_grad[1] else None
        losses = torch.empty(len(targets), device=hidden.device)
        chosen = None if choices is None else torch.zeros(choices.tokens.shape, device=hidden.device)
        for start in range(0, len(targets), at_once):
            part = slice(start, start + at_once)
            logits = _product(hidden[part], weight.T)
            logits[:, rows:] = -torch.inf
            target, counted = targets[part, None], weights[part, None]
            right, highest = logits.gather(1, target), logits.amax(1, keepdim=True)
            if choices is not None and chosen is not None:
                # All questions, in every part: which of them are asked here is known only to the device.
                asked = (choices.rows >= start) & (choices.rows < start + at_once)
                places = (choices.rows - start).clamp(0, len(logits) - 1)[:, None], choices.tokens.clamp(min=0)
                scores = logits[places].masked_fill(choices.tokens < 0, -torch.inf)
                chosen = torch.where(asked[:, None], scores.log_softmax(1), chosen)
            # In place from here on: so many logits are slow to write and to find room for.
            raised = logits.sub_(highest).exp_()
            sums = raised.sum(1, keepdim=True)
            losses[part] = (sums.log() + highest - right)[:, 0]
            if of_hidden is None and of_weight is None:
                continue
            # the gradient of cross-entropy is softmax - 1 at the target
            gradient = raised.mul_(counted / sums).scatter_add_(1, target, -counted)
            if choices is not None and chosen is not None:
                of_choices = (chosen.exp() - choices.targets) * (choices.weights * asked)[:, None]
                gradient.index_put_(places, of_choices, accumulate=True)
            gradient = gradient.to(computed)
            del logits, raised  # as large in float32, and needed no more
            if of_hidden is not None:
                of_hidden[part] = gradient @ weight
            if of_weight is not None:
                _add_product(of_weight, gradient.T, hidden[part])
        ctx.save_for_backward(of_hidden, None if of_weight is None else of_weight[:rows])
        total = (losses * weights).sum()
        if choices is None or chosen is None:
            ctx.mark_non_differentiable(losses)
            return total, losses, None
        ctx.mark_non_differentiable(losses, chosen)
        return total + (choices.losses(chosen) * choices.weights).sum(), losses, chosen

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        # In place: of a large vocabulary the weight's is among the largest tensors of a step. So no second pass is possible.
        return (
            None if of_hidden is None else of_hidden.mul_(of_total),
            None if of_weight is None else of_weight.mul_(of_total).to(ctx.kept),
            *(None,) * 6,
        )


def _computed_in(hidden: Tensor) -> torch.dtype:
    """The type of products, which autocast may say."""
    kind = hidden.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def _product(left: Tensor, right: Tensor) -> Tensor:
    """In float32. A card gives that of shorter types, too, and rounds nothing on the way."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add it to a float32 total, in whose place it is made where the device can: it is as large."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right
