"""How a global batch is divided: into micro-batches that the workers compute at the same time, round by round.

Every worker is kept busy, and no micro-batch is larger than memory was said to hold. Where packs meet, in the statistics of
a batch norm or in a contrastive loss, they meet in groups that depend on neither: a group is computed in one round, by one
worker or by all of them together. A micro-batch holds as many whole groups as it has room for, but for a contrastive loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from raymed.data.plan import GlobalBatch
from raymed.errors import UserError


@dataclass(frozen=True)
class MicroBatch:
    """What one worker computes in one round.

    Attributes:
        packs: its packs.
        counts: False for a repeat of weight 0, where a round has no packs left for the worker: ZeRO's collectives need
            every worker in every round.
        spans: whether its group is divided among all workers.
        groups: how many packs each of its groups has, where it holds several.
    """

    packs: GlobalBatch
    counts: bool = True
    spans: bool = False
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Division:
    """How global batches are divided among workers.

    Attributes:
        micro_batch: most packs of a micro-batch.
        workers: how many compute a round together.
        group: most packs that meet (0 = none do).
        whole: whether a group must stay on one worker.
    """

    micro_batch: int
    workers: int = 1
    group: int = 0
    whole: bool = False

    def rounds(self, batch: GlobalBatch) -> list[list[MicroBatch]]:
        """The micro-batches of each round, one a worker, in the order of the workers; every pack is in one that counts.

        Without groups, the fewest rounds in micro-batches of equal size. With groups, one a worker as long as there are
        enough of them; each of the others is divided among all.

        Raises:
            UserError: a group is larger than what the workers hold at once.
        """
        if not self.group:
            rounds = _ceil(len(batch), self.micro_batch * self.workers)
            return _dealt(_even(batch, rounds * self.workers), self.workers)
        self.check(len(batch))
        groups = _even(batch, _ceil(len(batch), self.group))
        alone = len(groups) if self.whole else len(groups) // self.workers * self.workers
        if len(groups[0]) > self.micro_batch:
            alone = 0
        divided = [_dealt(_even(group, self.workers), self.workers, spans=True)[0] for group in groups[alone:]]
        dealt = _dealt(groups[:alone], self.workers)
        return (dealt if self.whole else _joined(dealt, self.micro_batch // len(groups[0]))) + divided

    def share(self, batch: GlobalBatch, worker: int) -> list[MicroBatch]:
        """One worker's micro-batches of a global batch, one for each round."""
        return [together[worker] for together in self.rounds(batch)]

    def check(self, packs: int) -> None:
        """Make sure that every group of a global batch of so many packs can be computed in one round.

        Raises:
            UserError: it cannot.
        """
        group = _ceil(packs, _ceil(packs, self.group)) if self.group else 0
        if group > self.micro_batch * (1 if self.whole else self.workers):
            held = f"{self.workers} x train.micro_batch {self.micro_batch}" if not self.whole else str(self.micro_batch)
            raise UserError(
                f"{group} items meet in a batch norm or a contrastive loss (train.norm_group), and only {held} are computed "
                f"at once. Set train.micro_batch to {group}, or, which is another training, train.norm_group to "
                f"{self.micro_batch}"
            )

    def length(self, packs: int) -> int:
        """How many packs, one after the other, a global batch of `packs` takes: the largest of each round, summed."""
        return sum(max(len(micro.packs) for micro in together) for together in self.rounds(_of(packs)))

    def helpful(self, packs: int) -> int:
        """The fewest workers that are as fast as all of them with a global batch of so many packs."""
        fastest = self.length(packs)
        return next(n for n in range(1, self.workers + 1) if replace(self, workers=n).length(packs) == fastest)

    def balance(self, batches: Iterable[GlobalBatch]) -> tuple[float, float]:
        """Of global batches: the share of micro-batches that do not count, and the share of the workers' time that does.

        Time is counted in packs: a round lasts as long as its largest micro-batch.
        """
        micro = repeats = packs = lasting = 0
        for size, times in Counter(len(batch) for batch in batches).items():
            counts = [each.counts for together in self.rounds(_of(size)) for each in together]
            micro, repeats = micro + times * len(counts), repeats + times * counts.count(False)
            packs, lasting = packs + times * size, lasting + times * self.workers * self.length(size)
        return repeats / micro, packs / lasting


def _of(packs: int) -> GlobalBatch:
    return tuple((place,) for place in range(packs))


def _ceil(count: int, size: int) -> int:
    return -(-count // size)


def _even(packs: GlobalBatch, parts: int) -> list[GlobalBatch]:
    """`packs` in `parts` runs whose sizes differ by at most one, larger ones first; in fewer where there are fewer packs."""
    parts = min(parts, len(packs))
    ends = [len(packs) // parts * part + min(part, len(packs) % parts) for part in range(parts + 1)]
    return [packs[start:end] for start, end in pairwise(ends)]


def _joined(rounds: list[list[MicroBatch]], most: int) -> list[list[MicroBatch]]:
    """Rounds of whole groups, so many of them at once."""
    if most < 2:
        return rounds
    together = [rounds[start : start + most] for start in range(0, len(rounds), most)]
    return [[_one(several) for several in zip(*part, strict=True)] if len(part) > 1 else part[0] for part in together]


def _one(several: tuple[MicroBatch, ...]) -> MicroBatch:
    packs = tuple(pack for micro in several for pack in micro.packs)
    return MicroBatch(packs, groups=tuple(len(micro.packs) for micro in several))


def _dealt(parts: list[GlobalBatch], workers: int, spans: bool = False) -> list[list[MicroBatch]]:
    """The parts in turn, one a worker; in the last round the workers without one repeat the last."""
    spans = spans and workers > 1
    filled = [MicroBatch(part, True, spans) for part in parts]
    filled += [MicroBatch(part, False, spans) for part in parts[-1:] * (-len(parts) % workers)]
    return [filled[start : start + workers] for start in range(0, len(filled), workers)]
