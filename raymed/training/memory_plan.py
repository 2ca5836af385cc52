"""What of a run fits into the memory of its workers: tried out before it begins, and written down for when it goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from raymed.errors import UserError
from raymed.storage.availability import is_missing, require_there
from raymed.storage.folder import Folder
from raymed.training.agreement import Agreement
from raymed.training.memory_try import Tried, room_of, tried_alone, tried_here
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.worker_context import WorkerContext

PLAN = "memory.json"  # in the run's folder
# Settings whose size makes no array larger; of these only counts whether they are 0. Trials that differ in nothing else
# share a plan.
SIZELESS = (
    "lr", "weight_decay", "beta2", "eps", "warmup", "final_lr", "clip", "ema", "min_delta", "dropout", "drop_path",
    "label_smoothing", "strength",
)  # fmt: skip
FILLED = 0.9  # of the room, at most: batches differ, and freed memory lies in pieces


@dataclass(frozen=True)
class MemoryPlan:
    """How a run keeps to its memory.

    Attributes:
        micro_batch: packs of a forward pass.
        recomputed: whether activations are computed again in the backward pass.
        needed: bytes that a worker was seen to hold with it.
        room: that it may hold.
    """

    micro_batch: int
    recomputed: bool
    needed: int
    room: int

    @staticmethod
    def read(folder: Folder, name: str) -> MemoryPlan | None:
        """The one of that name; None where nobody wrote it, or what is there is none."""
        with contextlib.suppress(ValueError, TypeError):  # damaged, or of another raymed
            return MemoryPlan(**json.loads(folder.read(name))) if folder.exists(name) else None
        return None

    def write(self, folder: Folder, name: str) -> None:
        folder.write(name, self.content)

    @property
    def content(self) -> bytes:
        """As it is written down."""
        return json.dumps(asdict(self)).encode()

    def apply(self, train: TrainSettings) -> TrainSettings:
        """The settings, without anything left to find out."""
        return replace(train, micro_batch=self.micro_batch, checkpoint_activations="on" if self.recomputed else "off")

    def __str__(self) -> str:
        again = ", activations computed again in the backward pass" if self.recomputed else ""
        return (
            f"micro-batches of {self.micro_batch}{again}: {self.needed / 2**30:.2f} GiB were needed of the "
            f"{self.room / 2**30:.2f} GiB that a worker may hold"
        )


def settled(context: WorkerContext, spec: RunSpec, tell: Callable[[str], None]) -> RunSpec:
    """The run with what fits into memory, where it asks for that. All workers call it together.

    A run that goes on keeps to what it began with, and a trial to what another one of its needs found, as long as that fits.

    Args:
        tell: says to the job what was found.

    Raises:
        UserError: nothing fits.
    """
    if not spec.train.asks_memory:
        return spec
    if spec.train.zero_stage == 3 and context.workers > 1:
        raise UserError(
            "train.micro_batch and train.checkpoint_activations auto try the whole network in one process, and ZeRO 3 "
            "shares it out among workers: say a number, and on or off"
        )
    agreement = Agreement.early(Folder.at(spec.storage), spec.train, tell)
    group, room = agreement.group, room_of(context.device)
    known = [agreement.reach(lambda: _written(spec) if context.rank == 0 else None)]
    dist.broadcast_object_list(known, group=group)
    plan = known[0]
    found: list[Any] = [None] * context.workers
    dist.all_gather_object(found, plan is not None and plan.needed <= room, group)
    if plan is not None and all(found):
        if context.rank == 0:
            with contextlib.suppress(OSError):  # another trial's, perhaps; it is at hand
                if not spec.folder.exists(PLAN):
                    _write(spec, plan)
        return replace(spec, train=plan.apply(spec.train))
    own: MemoryPlan | str
    try:
        own = chosen(spec, context.workers, room, lambda train: tried_here(replace(spec, train=train), context, room))
    except UserError as error:
        own = str(error)
    dist.all_gather_object(found, own, group)
    if problem := next((each for each in found if isinstance(each, str)), ""):
        raise UserError(problem)
    plan = min(found, key=lambda each: (not each.recomputed, each.micro_batch))  # the smallest machine's
    agreement.reach(lambda: _write(spec, plan) if context.rank == 0 else None)
    if context.rank == 0:
        tell(f"{spec.name}: {plan}")
    return replace(spec, train=plan.apply(spec.train))


def chosen(spec: RunSpec, workers: int, room: int, attempt: Callable[[TrainSettings], Tried]) -> MemoryPlan:
    """The largest micro-batch that fits, without computing activations again where that can be.

    Args:
        attempt: tries settings out.

    Raises:
        UserError: none does.
    """
    train, refusals = spec.train, list[str]()
    sizes = sizes_of(train.global_batch, workers) if train.micro_batch == "auto" else [train.micro_batch]
    for how in ("off", "on") if train.checkpoint_activations == "auto" else (train.checkpoint_activations,):
        needed: dict[int, int] = {}

        def fits(size: int, how: Any = how, needed: dict[int, int] = needed) -> bool:
            tried = attempt(replace(train, micro_batch=size, checkpoint_activations=how))
            if tried.refusal:
                refusals.append(tried.refusal)
            elif tried.needed is not None and tried.needed <= FILLED * room:
                needed[size] = tried.needed
            return bool(tried.refusal) or size in needed

        largest = largest_of(sizes, fits)
        if largest in needed:
            return MemoryPlan(largest, how == "on", needed[largest], room)
    raise UserError(
        f"no micro-batch of this run fits into the {room / 2**30:.2f} GiB that a worker may hold; the smallest is "
        f"{refusals[-1] if refusals else sizes[0]}. docs/gpu.md says what takes less memory"
    )


def sizes_of(global_batch: int, workers: int) -> list[int]:
    """Micro-batches that differ in how many there are in a step, ascending: one more pack would save no round."""
    share = -(-global_batch // workers)
    return sorted({-(-share // rounds) for rounds in range(1, share + 1)})


def largest_of(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending sizes that fits, where all below one that fits do; the largest of all is tried first."""
    if fits(sizes[-1]):
        return sizes[-1]
    low, high = -1, len(sizes) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low] if low >= 0 else None


def shared_name(spec: RunSpec) -> str:
    """The file, beside the runs of a search, in which those of the same needs share a plan."""
    needs = _sized({**spec.origin(), "how": spec.train.how(), "workers": spec.workers})
    digest = hashlib.blake2b(json.dumps(needs, sort_keys=True, default=str).encode(), digest_size=6)
    return f"memory-{digest.hexdigest()}.json"


def _sized(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {str(key): _sized(each, key) for key, each in value.items()}
    return bool(value) if name in SIZELESS else value


def _places(spec: RunSpec) -> list[tuple[Folder, str]]:
    """Where a run's plan lies: the run's own first."""
    return [(spec.folder, PLAN), *([(Folder.at(spec.storage), shared_name(spec))] if spec.generation else [])]


def _written(spec: RunSpec) -> MemoryPlan | None:
    """Raises: OSError: the storage is not there, or does not answer."""
    there = Folder.at(spec.storage)
    found = (MemoryPlan.read(folder, name) for folder, name in _places(spec) if not is_missing(folder, name, there))
    return next(filter(None, found), None)


def _write(spec: RunSpec, plan: MemoryPlan) -> None:
    """Raises: OSError: the storage is not there, or refuses."""
    require_there(Folder.at(spec.storage))  # or nothing is to be written below its mount point
    for folder, name in _places(spec):
        folder.put(name, plan.content)


def plan_alone(spec: RunSpec, device: torch.device, room: int, cpus: int) -> MemoryPlan:
    """What a run of one worker needs, tried out by processes of the cluster that have a card for themselves.

    Args:
        room: that such a process may hold; see `room_alone`.
        cpus: of each.

    Raises:
        UserError: nothing fits.
    """
    return chosen(spec, 1, room, lambda train: tried_alone(replace(spec, train=train), device, room, cpus))
