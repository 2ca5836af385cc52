"""A toy run that sends a real signal while it trains."""

from __future__ import annotations

from dataclasses import dataclass

from signals import Signalling

from raymed.systems.toy.recipe import ToyRecipe


@dataclass(frozen=True)
class ToySignalling(Signalling, ToyRecipe):
    """`Signalling` over the toy network."""
