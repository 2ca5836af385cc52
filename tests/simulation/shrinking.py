"""The fewest faults that still break what a night's faults broke."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from faults import Fault
from pytest import MonkeyPatch
from setting import Setting
from simulated_night import Violation, run_night


def shrunk(seed: int, faults: Sequence[Fault], plant: Callable[[MonkeyPatch], None] | None = None) -> list[Fault]:
    """Leave out one fault after the other, as long as something still does not hold."""
    kept = list(faults)
    for fault in faults:
        fewer = [each for each in kept if each is not fault]
        try:
            run_night(seed, fewer, Setting.of(seed), plant)
        except Violation:
            kept = fewer
    return kept
