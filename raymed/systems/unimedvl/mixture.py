"""Which samples an epoch sees, in which shares, and which of them share a sequence.

Groups are drawn by their weights, a group's samples in an order of their own that begins anew once all were seen. Those
that were drawn wait in a buffer. A sequence begins with those that have waited longest, so that all have their turn, and is
filled up by best fit (D. S. Johnson, Near-Optimal Bin Packing Algorithms, 1973): the longest of those that still fit. None
is lost. An epoch draws as many samples as there are. Everything follows from (data, settings, seed, epoch), so that a run
resumes at its step in the same packs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from raymed.data.plan import Draw, SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError

CHUNK = 1024  # groups drawn at a time


@dataclass(frozen=True)
class PackingSettings:
    """How samples share sequences; they never attend to each other.

    Attributes:
        expected_num_tokens: from here on nothing more is drawn for a sequence; of what waits, it takes what still fits.
        max_num_tokens: what no sequence exceeds.
        max_num_tokens_per_sample: longer samples are not used.
        prefer_buffer_before: below so many tokens, a sequence takes the samples that have waited longest; from there on the
            longest that fit.
        max_buffer_size: how many samples are drawn ahead, and wait.
        weights: shares of the draws by class or by class/group, in place of the configuration's; what it does not name is
            not drawn. A stage of a curriculum is such weights.
    """

    expected_num_tokens: int = 32_768
    max_num_tokens: int = 36_864
    max_num_tokens_per_sample: int = 16_384
    prefer_buffer_before: int = 16_384
    max_buffer_size: int = 50
    weights: dict[str, float] = field(default_factory=dict)

    noun = "samples"
    option = "packing"

    def __post_init__(self) -> None:
        if not 1 <= self.expected_num_tokens <= self.max_num_tokens:
            raise UserError(
                f"packing.expected_num_tokens {self.expected_num_tokens} and packing.max_num_tokens {self.max_num_tokens}: "
                "give 1 <= expected <= max"
            )
        if not 1 <= self.max_num_tokens_per_sample <= self.max_num_tokens:
            raise UserError(
                f"packing.max_num_tokens_per_sample {self.max_num_tokens_per_sample}: give 1 to packing.max_num_tokens, "
                f"which is {self.max_num_tokens}"
            )
        if self.prefer_buffer_before < 0 or self.max_buffer_size < 0:
            raise UserError("packing.prefer_buffer_before and packing.max_buffer_size must be at least 0")
        if self.weights and not (min(self.weights.values()) >= 0 and sum(self.weights.values()) > 0):
            raise UserError("packing.weights cannot be negative, and one of them is above 0")

    @property
    def redraws(self) -> bool:
        return True

    @property
    def validation(self) -> SliceSettings:
        return SliceSettings(choice="all")

    @property
    def unlimited(self) -> PackingSettings:
        return self

    def choose(self, prepared: Prepared, rows: np.ndarray, seed: int, epoch: int | None) -> np.ndarray:
        """All rows, once."""
        return rows

    def draw(self, prepared: Prepared, parts: list[np.ndarray], seed: int, epoch: int) -> Draw:
        """An epoch's samples in packs; what is left out is counted by data set and reason.

        Raises:
            UserError: a group has no sample that is short enough, weights are zero, or mandatory samples exceed a sequence.
        """
        rows = np.concatenate(parts)
        columns = prepared.columns(rows, ["source", "cost"])
        costs, sources = columns["cost"], columns["source"]
        groups = self._groups(prepared, sources, costs)
        packs = list(self._packs(groups, costs, seed, epoch))
        long = Counter(sources[costs > self.max_num_tokens_per_sample])
        unseen = np.setdiff1d(np.arange(len(rows)), np.concatenate([*packs, np.zeros(0, np.int64)]).astype(np.int64))
        left = Counter(sources[unseen]) - long
        left_out = {f"of {name}: longer than max_num_tokens_per_sample": many for name, many in sorted(long.items())}
        left_out |= {f"of {name}: not drawn in this epoch": many for name, many in sorted(left.items())}
        filled = sum(costs[pack].sum() for pack in packs) / (len(packs) * self.max_num_tokens) if packs else 0.0
        return Draw([tuple(rows[pack].tolist()) for pack in packs], left_out, float(filled))

    def _groups(self, prepared: Prepared, sources: np.ndarray, costs: np.ndarray) -> list[_Group]:
        """The groups that are drawn from, in the order of the configuration."""
        described = prepared.manifest.settings.get("groups")
        if described is None:
            raise UserError(f"{prepared.folder.uri} holds no sequences: prepare the data with jobs/prepare_unimedvl.py")
        described = self._weighted(prepared, described)
        groups = []
        for title, group in described.items():
            members = np.isin(sources, [f"{title}/{name}" for name in group["sets"]])
            short = np.flatnonzero(members & (costs <= self.max_num_tokens_per_sample))
            if not members.any() or not (group["weight"] or group["mandatory"]):
                continue
            if not len(short):
                raise UserError(
                    f"{title}: all {members.sum()} samples are longer than packing.max_num_tokens_per_sample "
                    f"{self.max_num_tokens_per_sample} (the shortest has {costs[members].min()} tokens)"
                )
            groups.append(_Group(title, float(group["weight"]), bool(group["mandatory"]), short))
        if not sum(group.weight for group in groups) > 0:
            raise UserError(f"{prepared.folder.uri}: the weights of the groups that have samples sum to zero")
        mandatory = {group.title: int(costs[group.places].max()) for group in groups if group.mandatory}
        if sum(mandatory.values()) > self.max_num_tokens:
            longest = ", ".join(f"{title} {most}" for title, most in mandatory.items())
            raise UserError(
                f"the longest samples of the mandatory groups ({longest} tokens) exceed packing.max_num_tokens "
                f"{self.max_num_tokens} together: raise it, or lower packing.max_num_tokens_per_sample"
            )
        return groups

    def _weighted(self, prepared: Prepared, described: Mapping[str, Any]) -> Mapping[str, Any]:
        """The groups with the weights that are given here. A class's weight is shared by its groups as theirs are.

        Raises:
            UserError: a name is of no group.
        """
        if not self.weights:
            return described
        members = {
            name: [title for title, group in described.items() if name in (title, title.partition("/")[0])]
            for name in self.weights
        }
        if unknown := [name for name, titles in members.items() if not titles]:
            raise UserError(
                f"packing.weights names {', '.join(unknown)}, which {prepared.folder.uri} has not: {', '.join(described)}"
            )
        weights = dict.fromkeys(described, 0.0)
        for name, titles in members.items():
            whole = sum(described[title]["weight"] for title in titles) or 1.0
            for title in titles:
                weights[title] += self.weights[name] * described[title]["weight"] / whole
        return {title: group | {"weight": weights[title], "mandatory": False} for title, group in described.items()}

    def _packs(self, groups: Sequence[_Group], costs: np.ndarray, seed: int, epoch: int) -> Iterator[np.ndarray]:
        """Places of the samples of each pack."""
        streams = [group.stream(seed, epoch, number) for number, group in enumerate(groups)]
        chosen = _chosen([group.weight for group in groups], seed, epoch)
        left = sum(len(group.places) for group in groups)
        waiting: list[int] = []
        while left > 0 or waiting:
            pack: list[int] = []
            if left > 0:  # what still waits at the end of an epoch goes without: both might exceed a sequence
                pack = [next(stream) for stream, group in zip(streams, groups, strict=True) if group.mandatory]
                left -= len(pack)
            tokens = int(costs[pack].sum())
            while True:
                while left > 0 and tokens < self.expected_num_tokens and len(waiting) < max(1, self.max_buffer_size):
                    waiting.append(next(streams[next(chosen)]))
                    left -= 1
                fitting = [at for at, place in enumerate(waiting) if costs[place] <= self.max_num_tokens - tokens]
                if not fitting:
                    break
                longest_waiting = tokens < self.prefer_buffer_before
                at = fitting[0] if longest_waiting else max(fitting, key=lambda at: costs[waiting[at]])
                pack.append(waiting.pop(at))
                tokens += int(costs[pack[-1]])
            yield np.array(pack, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Group:
    """Places of the samples that may be drawn, and how often they are."""

    title: str
    weight: float
    mandatory: bool
    places: np.ndarray

    def stream(self, seed: int, epoch: int, number: int) -> Iterator[int]:
        """All samples in a drawn order, and again in another one, without end."""
        for turn in count():
            yield from np.random.default_rng([seed, epoch, 3, number, turn]).permutation(self.places).tolist()


def _chosen(weights: Sequence[float], seed: int, epoch: int) -> Iterator[int]:
    """Numbers of groups, drawn by their weights, without end."""
    draws = np.random.default_rng([seed, epoch, 2])
    shares = np.array(weights) / sum(weights)
    while True:
        yield from draws.choice(len(weights), CHUNK, p=shares).tolist()
