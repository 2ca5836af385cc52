"""What a person can say about the loss of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymed.errors import UserError


@dataclass(frozen=True)
class ChatLossSettings:
    """The loss of a sample: mean cross-entropy of its answers' tokens + choice_weight * mean choice loss of its questions.

    Attributes:
        reduction: what weighs alike in a global batch: every supervised token (token), every sample (sample), or,
            in between, a sample by the square root of its supervised tokens (square).
        choice_weight: weight of the cross-entropy over the declared choices, where a sample asks ``<cls>: a|b|c.``; 0 leaves
            it out.
        label_smoothing: share of the choice loss's target that is spread evenly over all choices.
    """

    reduction: Literal["token", "sample", "square"] = "token"
    choice_weight: float = 1.0
    label_smoothing: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"loss.label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")
        if self.choice_weight < 0:
            raise UserError(f"loss.choice_weight is {self.choice_weight}: it must be at least 0")

    def weight(self, tokens: int) -> float:
        """Of each supervised token of a sample with so many."""
        return {"token": 1.0, "sample": 1 / max(1, tokens), "square": max(1, tokens) ** -0.5}[self.reduction]
