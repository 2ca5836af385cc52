"""What a person can say about each system's loss and about how training pictures are varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
class ClipLossSettings:
    """What the towers are trained on.

    Attributes:
        kind: `class`: cross-entropy of a picture over all classes; `clip`: the symmetric contrastive loss over the pictures
            of a group (`train.norm_group`) and the texts of their classes, which cannot fall below the logarithm of how
            often a class occurs there, so that its value says little.
        text_to_image: weight of the direction from class texts to the group's pictures, added to `class`; `clip` has
            it already.
    """

    kind: Literal["class", "clip"] = "class"
    text_to_image: float = 0.0

    def __post_init__(self) -> None:
        if self.text_to_image < 0:
            raise UserError(f"loss.text_to_image is {self.text_to_image}: it must be at least 0")
        if self.text_to_image and self.kind == "clip":
            raise UserError("loss.text_to_image is for the class loss; the clip loss has that direction: set it to 0")


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


@dataclass(frozen=True)
class AugmentSettings:
    """How training pictures are varied.

    Attributes:
        preset: `none`; `light`: small shifts, turns and brightness; `ct`: larger turns and scales, slight window changes,
            noise and erasing; `xray`: exposure (contrast, gamma) more than geometry; `flips`: `ct` and mirroring left to
            right, only for questions where the side does not matter.
        strength: 0 (nothing) to 1 (the preset's full ranges).
    """

    preset: Literal["none", "light", "ct", "xray", "flips"] = "light"
    strength: float = 0.5

    @property
    def off(self) -> bool:
        return self.preset == "none" or self.strength == 0


@dataclass(frozen=True)
class ClipAugmentSettings:
    """How training pictures are varied.

    Attributes:
        preset: `none`; `minimal`: random crop, mirroring; `standard`: also turned upside down, rotation, colours, an erased
            rectangle; `radiograph`: random crop, exposure (contrast, gamma), slight geometry, never mirrored: for X-rays and
            whatever else has a left and a right.
    """

    preset: Literal["none", "minimal", "standard", "radiograph"] = "standard"
