"""Image tokens that the language model does not get to see in training (TMAug, visual robustness learning).

The image backbone sees whole pictures and must tell the rest with fewer tokens (ViTP, arXiv:2509.17562, section 3.2). Which
tokens of a sample are dropped is drawn on the host, so the sequence that goes to the device is the shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raymed.errors import UserError

GUIDE_SHARE = 0.3
SHUFFLED = 4  # tokens of the image backbone that the pixel shuffle makes one image token of


@dataclass(frozen=True)
class TokenDropSettings:
    """Which image tokens of a sample are dropped in training, over all its tiles and thumbnails.

    Attributes:
        rate: p, from 0 (nothing is dropped) to below 1.
        mode: `code`, as the published weights were trained: with probability 1 - p a share p is dropped; `paper`: a share p
            always; `guide`: with probability p a share of 0.3 of the image backbone's own tokens is set to zero before the
            projector, and the sequence keeps its length.
    """

    rate: float = 0.75
    mode: Literal["code", "paper", "guide"] = "code"

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"token_drop.rate is {self.rate}: it must be at least 0 and below 1")

    def keep(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Which of a sample's `count` image tokens stay: bool [count], false at floor(share * count) random places."""
        kept = np.ones(count, bool)
        probability = {"code": 1 - self.rate, "paper": 1.0, "guide": 0.0}[self.mode]
        if self.rate and self.mode != "guide" and generator.random() < probability:
            kept[generator.choice(count, int(self.rate * count), replace=False)] = False
        return kept

    def silence(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Which of a sample's `count` tokens of the image backbone are set to zero: bool [count], true at floor(0.3 * count)
        random places, with probability p; nowhere in the other modes."""
        silent = np.zeros(count, bool)
        if self.mode == "guide" and generator.random() < self.rate:
            silent[generator.choice(count, int(GUIDE_SHARE * count), replace=False)] = True
        return silent
