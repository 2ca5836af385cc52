"""What a person can say about the lung classifier's loss."""

from __future__ import annotations

from dataclasses import dataclass

from raymed.errors import UserError


@dataclass(frozen=True)
class LossSettings:
    """The loss of one slice: choice_weight * choice loss + lm_weight * language loss.

    Attributes:
        label_smoothing: share of the choice loss's target that is spread evenly over all classes.
        choice_weight: weight of the cross-entropy over the declared choices.
        lm_weight: weight of the cross-entropy over the whole vocabulary, for the answer and the end of the turn; read by
            the internvl family only.
    """

    label_smoothing: float = 0.01
    choice_weight: float = 1.0
    lm_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"loss.label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")
        if self.choice_weight <= 0 or self.lm_weight < 0:
            raise UserError("loss.choice_weight must be above 0, and loss.lm_weight at least 0")
