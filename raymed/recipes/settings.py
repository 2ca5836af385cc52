"""How training pictures are varied, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
