"""Mixing and packing: how often each data set's samples are seen, and which of them share a sequence.

Samples are packed by best-fit decreasing (D. S. Johnson, Near-Optimal Bin Packing Algorithms, 1973) within windows of a
shuffled order: the longest first, each into the fullest pack that still has room for it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raymed.data.plan import Draw, Pack, SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError

WINDOW = 2048  # samples packed at a time: enough to find partners, few enough that packs stay random
NAMED = 10


@dataclass(frozen=True)
class MixtureSettings:
    """Which samples an epoch sees, and how they share sequences.

    Attributes:
        weights: how often a data set's samples are seen: as its repeat_time says (repeat), or drawn anew each epoch, as many
            in all, with data sets in proportion to the square root of their size (sqrt).
        packing: whether several samples share a sequence; they never attend to each other.
        max_tokens: tokens of a sequence; a longer sample is an error.
    """

    weights: Literal["repeat", "sqrt"] = "repeat"
    packing: bool = True
    max_tokens: int = 4096

    noun = "samples"
    option = "mixture"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"mixture.max_tokens is {self.max_tokens}: it must be at least 1")

    @property
    def redraws(self) -> bool:
        return self.weights == "sqrt"

    @property
    def validation(self) -> SliceSettings:
        return SliceSettings(choice="all")

    @property
    def unlimited(self) -> MixtureSettings:
        return self

    def choose(self, prepared: Prepared, rows: np.ndarray, seed: int, epoch: int | None) -> np.ndarray:
        """All rows, once."""
        return rows

    def draw(self, prepared: Prepared, parts: list[np.ndarray], seed: int, epoch: int) -> Draw:
        """An epoch's samples in packs.

        Raises:
            UserError: a sample is longer than a sequence.
        """
        rows = np.concatenate(parts)
        columns = prepared.columns(rows, ["source", "cost"])
        self._require_short(prepared, rows, columns["cost"])
        generator = np.random.default_rng([seed, epoch, 2])
        places = self._places(columns["source"], repeats(prepared), generator)
        places = places[generator.permutation(len(places))]
        costs = columns["cost"][places]
        packs = pack(costs, self.max_tokens) if self.packing else [(place,) for place in range(len(places))]
        taken = rows[places].tolist()
        filled = float(costs.sum()) / (len(packs) * self.max_tokens) if packs else 0.0
        unused = len(rows) - len(np.unique(places))
        left_out = {"not drawn in this epoch": unused} if self.redraws else {}
        return Draw([tuple(taken[place] for place in each) for each in packs], left_out, filled if self.packing else None)

    def _require_short(self, prepared: Prepared, rows: np.ndarray, costs: np.ndarray) -> None:
        long = np.flatnonzero(costs > self.max_tokens)
        if len(long):
            names = prepared.columns(rows[long[:NAMED]], ["id"])["id"]
            named = ", ".join(f"{name} ({cost})" for name, cost in zip(names, costs[long], strict=False))
            raise UserError(
                f"{len(long)} samples are longer than a sequence of {self.max_tokens} tokens: {named}. Raise "
                "mixture.max_tokens, or prepare the data with a smaller max_tokens or fewer tiles"
            )

    def _places(self, sources: np.ndarray, times: Mapping[str, int], generator: np.random.Generator) -> np.ndarray:
        """Places of the samples that are seen, each as often as it is."""
        sets = {name: np.flatnonzero(sources == name) for name in sorted(set(sources))}
        sizes = {name: len(places) * times.get(name, 1) for name, places in sets.items()}
        if self.weights == "repeat":
            return np.concatenate([np.tile(places, times.get(name, 1)) for name, places in sets.items()])
        wanted = _by_root(sizes)
        drawn = []
        for name, places in sets.items():
            whole, rest = divmod(wanted[name], len(places))
            drawn += [np.tile(places, whole), generator.choice(places, rest, replace=False)]
        return np.concatenate(drawn)


def repeats(prepared: Prepared) -> dict[str, int]:
    """How often each data set is to be shown; a share below 1 was taken when the data were prepared."""
    known = prepared.manifest.settings.get("datasets", {})
    return {name: max(1, int(use["repeat_time"])) for name, use in known.items()}


def pack(costs: np.ndarray, capacity: int) -> list[Pack]:
    """Places of `costs` [n], each once, in packs whose costs sum to at most `capacity`."""
    packs: list[list[int]] = []
    for start in range(0, len(costs), WINDOW):
        window = costs[start : start + WINDOW]
        room: list[tuple[int, int]] = []  # what is free in a pack of this window, and its number; ascending
        for place in np.argsort(-window, kind="stable").tolist():
            cost = int(window[place])
            found = bisect_left(room, (cost, -1))
            if found == len(room):
                free, number = capacity, len(packs)
                packs.append([])
            else:
                free, number = room.pop(found)
            packs[number].append(start + place)
            if free > cost:
                insort(room, (free - cost, number))
    return [tuple(each) for each in packs]


def _by_root(sizes: Mapping[str, int]) -> dict[str, int]:
    """As many in all, in proportion to the square roots, by largest remainder."""
    total, roots = sum(sizes.values()), {name: size**0.5 for name, size in sizes.items()}
    exact = {name: total * root / sum(roots.values()) for name, root in roots.items()}
    counts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
