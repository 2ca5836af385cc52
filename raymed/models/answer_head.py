"""The output layer of a language model that is only asked where an answer is learned, a few places at a time.

With 151,674 tokens in the vocabulary, the logits of 4,096 places take 2.3 GiB, and training takes several times that. Here
the cross-entropy and its gradient are computed together, so many places at a time that their logits stay small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LOGITS = 2**26  # at once: 256 MiB in float32


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
        self, hidden: Tensor, targets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, or, with targets, their cross-entropy.

        Args:
            hidden: [..., width]; [places, width] with targets.
            targets: token ids, int64 [places].
            weights: of the places in the sum, float32 [places].

        Returns:
            Logits [..., vocabulary]; or the weighted sum of the cross-entropies and, for the log, each of them without a
            gradient: float32 [places].
        """
        if targets is None or weights is None:
            return super().forward(hidden)
        at_once = max(1, LOGITS // self.out_features)
        return _CrossEntropy.apply(hidden, self.weight, targets, weights, at_once, torch.is_grad_enabled())


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, at_once: int, training: bool
    ) -> tuple[Tensor, Tensor]:
        of_hidden = torch.empty_like(hidden) if training and ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if training and ctx.needs_input_grad[1] else None
        losses = torch.empty(len(targets), device=hidden.device)
        for start in range(0, len(targets), at_once):
            part = slice(start, start + at_once)
            logits = (hidden[part] @ weight.T).float()
            normaliser = logits.logsumexp(1, keepdim=True)
            target = targets[part, None]
            losses[part] = (normaliser - logits.gather(1, target))[:, 0]
            if of_hidden is None and of_weight is None:
                continue
            # the gradient of cross-entropy is softmax - 1 at the target
            gradient = logits.sub_(normaliser).exp_().scatter_add_(1, target, -torch.ones_like(normaliser))
            gradient = gradient.mul_(weights[part, None]).to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[part] = gradient @ weight
            if of_weight is not None:
                of_weight += gradient.T @ hidden[part]
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.kept = weight.dtype
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden * of_total,
            None if of_weight is None else (of_weight * of_total).to(ctx.kept),
            *(None,) * 4,
        )
