"""A small run that sends a real signal while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from signals import Signalling
from small import Small


@dataclass(frozen=True)
class SmallSignalling(Signalling, Small):
    """`Signalling` over the small network."""
