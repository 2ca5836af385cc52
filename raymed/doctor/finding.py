"""What the doctor found, as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymed.language import padded, reworded, say


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's list.

    Attributes:
        subject: what was looked at.
        state: ok; missing (something optional is not there); wrong (must be mended).
        text: what was found, and where it is not ok what that means and what to do.
    """

    subject: str
    state: Literal["ok", "missing", "wrong"]
    text: str

    def __str__(self) -> str:
        return padded(say(self.state), 8) + padded(say(self.subject), 16) + reworded(self.text)
