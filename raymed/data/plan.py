"""The epoch plan: which rows an epoch uses, in which global batches. A pure function of (index, settings, seed, epoch).

Rows are named by their row number in the index. The plan knows nothing of workers, speed or restarts: a worker takes its
share of each global batch, and a resumed run cuts the same plan at its global step.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

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

    option: str
    """What it is called among a run's options: ``slices`` for --slices.per-patient."""

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
        per_patient: How many (K).
        per: Of whom: of each patient, shared evenly over the patient's studies, or of each study.
        choice: uniform (over the whole series), random (drawn anew each epoch, training only), middle, or all.
        limit: Use only this many patients per split, for a first try: of every class in proportion, at least one (0 = all).
        class_weights: Draw as many slices as there are anew each epoch, with replacement, rare classes more often: by one
            over their number of slices (inverse_freq; balanced, without smoothing) or its square root (inverse_sqrt).
        smoothing: Slices added to each class's number, so that very rare ones are not drawn too often.
    """

    per_patient: int = 16
    per: Literal["patient", "study"] = "patient"
    choice: Literal["uniform", "random", "middle", "all"] = "uniform"
    limit: int = 0
    class_weights: Literal["none", "inverse_freq", "inverse_sqrt", "balanced"] = "none"
    smoothing: float = 1.0

    noun = "slices"
    option = "slices"

    def __post_init__(self) -> None:
        if self.per_patient < 1:
            raise UserError(f"slices.per_patient is {self.per_patient}; it must be at least 1 (or use slices.choice all)")
        if self.smoothing < 0:
            raise UserError(f"slices.smoothing is {self.smoothing}; it must be at least 0")

    def __str__(self) -> str:
        """As runs record it. Those from before `per` took so many slices of each study, or all: they go on with that."""
        text = repr(self)
        return text.replace(f"per={self.per!r}, ", "") if self.per == "study" or self.choice == "all" else text

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> SliceSettings:
        """From what `dataclasses.asdict` gave; a model from before `per` was trained on so many slices of each study."""
        return cls(**{"per": "study", **values})

    @property
    def told(self) -> str:
        """Which slices, in words."""
        if self.choice == "all":
            return f"all slices of each {self.per}"
        return f"{self.per_patient} slices of each {self.per} ({self.choice})"

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
        kept = self._within_limit(prepared, rows, seed)
        return kept[choose(series_of(prepared, kept), self, seed, epoch)]

    def draw(self, prepared: Prepared, parts: list[np.ndarray], seed: int, epoch: int) -> Draw:
        limited = [self._within_limit(prepared, part, seed) for part in parts]
        rows = np.sort(np.concatenate([part[choose(series_of(prepared, part), self, seed, epoch)] for part in limited]))
        inside = sum(map(len, limited))
        left_out = {
            f"of patients beyond slices.limit {self.limit}": sum(map(len, parts)) - inside,
            f"not among the {self.per_patient} {self.choice} slices of a {self.per}": inside - len(rows),
        }
        if self.class_weights != "none":
            weights = row_weights(prepared.columns(rows, ["label"])["label"], self)
            drawn = np.random.default_rng([seed, epoch, 2]).choice(rows, len(rows), p=weights / weights.sum())
            left_out["not drawn in this epoch"] = len(rows) - len(np.unique(drawn))
            rows = np.sort(drawn)
        return Draw([(row,) for row in rows.tolist()], {reason: count for reason, count in left_out.items() if count})

    def _within_limit(self, prepared: Prepared, rows: np.ndarray, seed: int) -> np.ndarray:
        """The rows of the patients that `limit` leaves."""
        if not self.limit:
            return rows
        patients, first, owner = np.unique(prepared.owners[0][rows], return_index=True, return_inverse=True)
        columns = prepared.columns(rows[first], ["patient", "label"])
        inside = np.zeros(len(patients), dtype=bool)
        inside[foremost(columns["patient"], columns["label"], self.limit, seed)] = True
        return rows[inside[owner]]


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


@lru_cache(maxsize=4096)
def uniform(count: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` items spread over `count`, both ends included: round(i (n - 1) / (K - 1)); all where n <= K."""
    if count <= wanted:
        return np.arange(count)
    if wanted == 1:
        return np.array([(count - 1) // 2])
    places = np.arange(wanted) * (count - 1) / (wanted - 1)
    return np.floor(places + 0.5).astype(np.int64)


@dataclass(frozen=True)
class Series:
    """Whose each of n slices is.

    Attributes:
        patients, studies: whole numbers [n], equal where they are the same; a study is of one patient.
        positions: order within the study [n].
        name: of the study of the slice at a place: what `random` draws by.
    """

    patients: np.ndarray
    studies: np.ndarray
    positions: np.ndarray
    name: Callable[[int], str]


def series_of(prepared: Prepared, rows: np.ndarray) -> Series:
    """Whose the rows are."""

    def name(place: int) -> str:
        ((patient,), (study,)) = prepared.columns(rows[place : place + 1], ["patient", "study"]).values()
        return f"{len(patient)}:{patient}{study}"

    patients, studies = prepared.owners
    return Series(patients[rows], studies[rows], prepared.columns(rows, ["position"])["position"], name)


def choose(series: Series, settings: SliceSettings, seed: int = 0, epoch: int | None = None) -> np.ndarray:
    """Places of the slices that are used, ascending: K of each patient or study.

    Args:
        epoch: the training epoch; None (evaluation) makes ``random`` choose as ``uniform``.
    """
    count = len(series.studies)
    if settings.choice == "all" or not count:
        return np.arange(count)
    order = np.lexsort((series.positions, series.studies, series.patients))
    firsts = _starts(series.studies[order])
    sizes = np.diff(firsts, append=count)
    wanted = np.full(len(firsts), settings.per_patient)
    if settings.per == "patient":
        starts = _starts(series.patients[order[firsts]])
        counts = np.diff(starts, append=len(firsts))
        for start, studies in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
            several = slice(start, start + studies)
            wanted[several] = _shared(sizes[several], settings.per_patient)
    chosen = []
    alike, kind = np.unique(np.stack([sizes, wanted]), axis=1, return_inverse=True)
    for number, (size, share) in enumerate(alike.T.tolist()):
        starts = firsts[kind == number]
        if settings.choice != "random" or epoch is None or not 0 < share < size:
            chosen.append(np.add.outer(starts, _fixed(size, share, settings.choice)).ravel())
            continue
        for first in starts.tolist():
            generator = np.random.default_rng([seed, epoch, _hash(0, series.name(order[first]))])
            chosen.append(first + np.sort(generator.choice(size, share, replace=False)))
    return np.sort(order[np.concatenate(chosen)])


def foremost(patients: np.ndarray, labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Places of `limit` patients: one of every class first, then of each in proportion to its size; drawn by `seed`.

    A larger limit holds the patients of a smaller one.

    Args:
        patients: names [n].
        labels: their classes [n].
    """
    drawn = np.array([_hash(seed, str(patient)) for patient in patients], dtype=np.uint64)
    order = np.lexsort((drawn, labels))
    sizes = np.diff(_starts(labels[order]), append=len(order))
    rank = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else np.zeros(0)
    share = np.where(rank == 0, -1.0, (rank + 0.5) / np.repeat(sizes, sizes))
    return order[np.lexsort((drawn[order], share))[:limit]]


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


def _starts(values: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 1)) if len(values) else np.zeros(0, dtype=np.int64)


def _shared(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """How many each of a patient's studies gives, as evenly as sizes allow; of more studies than slices some, spread."""
    shares = np.zeros(len(sizes), dtype=np.int64)
    if len(sizes) > wanted:
        shares[uniform(len(sizes), wanted)] = 1
        return shares
    for given, place in enumerate(np.argsort(sizes, kind="stable")):  # what a small one lacks, the larger ones give
        shares[place] = min(sizes[place], (wanted - shares.sum()) // (len(sizes) - given))
    return shares


@lru_cache(maxsize=4096)
def _fixed(count: int, wanted: int, choice: str) -> np.ndarray:
    """The places that do not depend on the epoch."""
    if not wanted:
        return np.zeros(0, dtype=np.int64)
    if choice == "middle" and count > wanted:
        return np.arange(wanted) + (count - wanted) // 2
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


def repeat_counts(batches: Sequence[GlobalBatch]) -> tuple[GlobalBatch, ...]:
    """At the place of each row, how often it was shown before, in the order of the batches."""
    seen: Counter[int] = Counter()

    def shown(row: int) -> int:
        seen[row] += 1
        return seen[row] - 1

    return tuple(tuple(tuple(map(shown, pack)) for pack in batch) for batch in batches)


def _hash(seed: int, text: str) -> int:
    """A number for a name that does not change between processes, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "little")
