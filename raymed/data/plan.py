"""The epoch plan: which rows an epoch uses, in which global batches. A pure function of (index, settings, seed, epoch).

Rows are named by their row number in the index. The plan knows nothing of workers, speed or restarts: a worker takes its
share of each global batch, and a resumed run cuts the same plan at its global step.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from raymed.errors import UserError

if TYPE_CHECKING:
    from raymed.data.prepared import Prepared

Pack = tuple[int, ...]
"""Row numbers that the model sees as one item: a single slice for the lung recipe, a sequence of samples in pretraining."""

GlobalBatch = tuple[Pack, ...]
"""The packs of one optimizer step, over all workers and micro-batches."""


@dataclass(frozen=True)
class Draw:
    """What an epoch trains on, before it is shuffled.

    Attributes:
        packs: rows that are seen together.
        left_out: rows that are not used, counted by reason.
        fill_rate: share of the packs' capacity that is used; None where they have none.
    """

    packs: list[Pack]
    left_out: dict[str, int]
    fill_rate: float | None = None


class Sampling(Protocol):
    """How a split's rows become an epoch: `SliceSettings`, or `MixtureSettings` (raymed/data/packing.py)."""

    noun: str
    """What a row is called."""

    @property
    def redraws(self) -> bool:
        """Whether epochs differ in the rows they use."""
        ...

    @property
    def validation(self) -> SliceSettings:
        """Which rows are judged."""
        ...

    @property
    def unlimited(self) -> Sampling:
        """The same, of all patients."""
        ...

    def choose(self, prepared: Prepared, rows: np.ndarray, seed: int, epoch: int | None) -> np.ndarray:
        """The rows of one split that are used, ascending; `epoch` is None in evaluation."""
        ...

    def draw(self, prepared: Prepared, parts: list[np.ndarray], seed: int, epoch: int) -> Draw:
        """An epoch of the rows of the splits that are trained on, one part each."""
        ...


@dataclass(frozen=True)
class SliceSettings:
    """Which slices of a patient are used.

    Attributes:
        per_patient: Slices per study (K).
        choice: uniform (over the whole series), random (drawn anew each epoch, training only), middle, or all.
        limit: Use only this many patients per split, for a first try (0 = all).
        class_weights: Draw as many slices as there are anew each epoch, with replacement, rare classes more often: by one
            over their number of slices (inverse_freq; balanced, without smoothing) or its square root (inverse_sqrt).
        smoothing: Slices added to each class's number, so that very rare ones are not drawn too often.
    """

    per_patient: int = 16
    choice: Literal["uniform", "random", "middle", "all"] = "uniform"
    limit: int = 0
    class_weights: Literal["none", "inverse_freq", "inverse_sqrt", "balanced"] = "none"
    smoothing: float = 1.0

    noun = "slices"

    def __post_init__(self) -> None:
        if self.per_patient < 1:
            raise UserError(f"slices.per_patient is {self.per_patient}; it must be at least 1 (or use slices.choice all)")
        if self.smoothing < 0:
            raise UserError(f"slices.smoothing is {self.smoothing}; it must be at least 0")

    @property
    def redraws(self) -> bool:
        return self.choice == "random"

    @property
    def validation(self) -> SliceSettings:
        return self

    @property
    def unlimited(self) -> SliceSettings:
        return replace(self, limit=0)

    def choose(self, prepared: Prepared, rows: np.ndarray, seed: int, epoch: int | None) -> np.ndarray:
        columns = prepared.columns(rows, ["patient", "study", "position"])
        return choose(rows, columns["patient"], columns["study"], columns["position"], self, seed, epoch)

    def draw(self, prepared: Prepared, parts: list[np.ndarray], seed: int, epoch: int) -> Draw:
        rows = np.sort(np.concatenate([self.choose(prepared, part, seed, epoch) for part in parts]))
        left_out = {f"not among the {self.choice} slices chosen": sum(map(len, parts)) - len(rows)}
        if self.class_weights != "none":
            weights = row_weights(prepared.columns(rows, ["label"])["label"], self)
            drawn = np.random.default_rng([seed, epoch, 2]).choice(rows, len(rows), p=weights / weights.sum())
            left_out["not drawn in this epoch"] = len(rows) - len(np.unique(drawn))
            rows = np.sort(drawn)
        return Draw([(row,) for row in rows.tolist()], {reason: count for reason, count in left_out.items() if count})


@dataclass(frozen=True)
class EpochPlan:
    """The global batches of one epoch, in order.

    Attributes:
        batches: the epoch's global batches; the last one may be smaller.
        left_out: rows that the plan does not use, counted by reason.
        fill_rate: share of the packs' capacity that is used; None where they have none.
    """

    batches: tuple[GlobalBatch, ...]
    left_out: dict[str, int]
    fill_rate: float | None = None

    @property
    def rows(self) -> int:
        """Rows that are used, repeats counted."""
        return sum(len(pack) for batch in self.batches for pack in batch)


def uniform(count: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` items spread over `count`, both ends included: round(i (n - 1) / (K - 1)); all where n <= K."""
    if count <= wanted:
        return np.arange(count)
    if wanted == 1:
        return np.array([(count - 1) // 2])
    places = np.arange(wanted) * (count - 1) / (wanted - 1)
    return np.floor(places + 0.5).astype(np.int64)


def choose(
    rows: np.ndarray,
    patients: np.ndarray,
    studies: np.ndarray,
    positions: np.ndarray,
    settings: SliceSettings,
    seed: int = 0,
    epoch: int | None = None,
) -> np.ndarray:
    """The rows that are used, sorted: K slices of each study, of at most `limit` patients.

    Args:
        rows: row numbers of one split, [n]; `patients`, `studies`, `positions` describe them, [n].
        epoch: the training epoch; None (evaluation) makes ``random`` choose as ``uniform``.
    """
    if settings.limit:
        kept = sorted(set(patients), key=lambda patient: _hash(seed, str(patient)))[: settings.limit]
        inside = np.isin(patients, np.array(kept, dtype=object))
        rows, patients, studies, positions = rows[inside], patients[inside], studies[inside], positions[inside]
    if settings.choice == "all":
        return np.sort(rows)
    owners = np.array([f"{len(str(patient))}:{patient}{study}" for patient, study in zip(patients, studies, strict=True)])
    order = np.lexsort((positions, owners))
    ends = np.flatnonzero(owners[order][1:] != owners[order][:-1]) + 1
    chosen = [rows[:0]]
    for series in np.split(order, ends):
        if len(series):
            chosen.append(rows[series[_pick(len(series), settings, seed, epoch, str(owners[series[0]]))]])
    return np.sort(np.concatenate(chosen))


def row_weights(labels: np.ndarray, settings: SliceSettings) -> np.ndarray:
    """How often each row is drawn relative to the others: N / (K (n + s)) or sqrt(N / (n + s)), with n rows of its class.

    Args:
        labels: class of each row, int [N], of K different ones.
    """
    counts = np.bincount(labels)
    smoothed = counts[labels] + (0.0 if settings.class_weights == "balanced" else settings.smoothing)
    if settings.class_weights == "inverse_sqrt":
        return np.sqrt(len(labels) / smoothed)
    return len(labels) / (np.count_nonzero(counts) * smoothed)


def _pick(count: int, settings: SliceSettings, seed: int, epoch: int | None, name: str) -> np.ndarray:
    wanted = settings.per_patient
    if settings.choice == "middle" and count > wanted:
        return np.arange(wanted) + (count - wanted) // 2
    if settings.choice == "random" and epoch is not None and count > wanted:
        generator = np.random.default_rng([seed, epoch, _hash(0, name)])
        return np.sort(generator.choice(count, wanted, replace=False))
    return uniform(count, wanted)


def plan_epoch(
    packs: Sequence[Pack],
    global_batch: int,
    seed: int,
    epoch: int,
    left_out: dict[str, int],
    fill_rate: float | None = None,
) -> EpochPlan:
    """All packs once, in an order drawn from (seed, epoch), cut into global batches of `global_batch` packs."""
    order = np.random.default_rng([seed, epoch, 1]).permutation(len(packs))
    shuffled = [packs[place] for place in order]
    batches = tuple(tuple(shuffled[start : start + global_batch]) for start in range(0, len(shuffled), global_batch))
    return EpochPlan(batches, left_out, fill_rate)


def showings(batches: Sequence[GlobalBatch]) -> tuple[GlobalBatch, ...]:
    """At the place of each row, how often it was shown before, in the order of the batches."""
    seen: Counter[int] = Counter()

    def shown(row: int) -> int:
        seen[row] += 1
        return seen[row] - 1

    return tuple(tuple(tuple(map(shown, pack)) for pack in batch) for batch in batches)


def _hash(seed: int, text: str) -> int:
    """A number for a name that does not change between processes, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "little")
