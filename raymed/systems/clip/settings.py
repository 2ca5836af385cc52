"""What a person can say about the towers' loss and about how their pictures are varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymed.errors import UserError


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
class ClipAugmentSettings:
    """How training pictures are varied.

    Attributes:
        preset: `none`; `minimal`: random crop, mirroring; `standard`: also turned upside down, rotation, colours, an erased
            rectangle; `radiograph`: random crop, exposure (contrast, gamma), slight geometry, never mirrored: for X-rays and
            whatever else has a left and a right.
    """

    preset: Literal["none", "minimal", "standard", "radiograph"] = "standard"
