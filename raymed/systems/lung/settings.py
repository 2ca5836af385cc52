"""What a person can say about the lung classifier's loss, and about the head that weighs slices."""

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


@dataclass(frozen=True)
class HeadSettings:
    """How the head is trained: AdamW over all patients at once.

    Attributes:
        hidden: width of the two gates.
        steps: optimizer steps.
        lr: learning rate.
        weight_decay: pulls the head to where all slices weigh the same.
        dropout: share of the features that a step does not see.
    """

    hidden: int = 32
    steps: int = 200
    lr: float = 3e-3
    weight_decay: float = 0.3
    dropout: float = 0.25

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.steps < 1:
            raise UserError("head.hidden and head.steps must be at least 1")
        if self.lr <= 0 or self.weight_decay < 0 or not 0 <= self.dropout < 1:
            raise UserError("head.lr must be above 0, head.weight_decay at least 0, and head.dropout from 0 to below 1")
