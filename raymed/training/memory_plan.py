"""What of a run fits into the memory of its workers: tried out before it begins, and written down for when it goes on.

A try is a run's step on a network of its own, in a process of its own, which may come to hold no more than the worker may:
what does not fit ends there, and nobody else is short of memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymed.data.micro_batches import MicroBatch
from raymed.data.plan import GlobalBatch
from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.recipes.recipe import TrainingPass
from raymed.storage.availability import wait_for
from raymed.storage.folder import Folder
from raymed.training.cards import CONTEXT, share_of_card
from raymed.training.engine import Engine, division, prepare_process
from raymed.training.network import NothingToComputeAgainError
from raymed.training.rendezvous import meet_nobody
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.worker_context import WorkerContext
from raymed.training.zero import own_disk

PLAN = "memory.json"  # in the run's folder
# Settings whose size makes no array larger; of these only counts whether they are 0. Trials that differ in nothing else
# share a plan.
SIZELESS = (
    "lr", "weight_decay", "beta2", "eps", "warmup", "final_lr", "clip", "ema", "min_delta", "dropout", "drop_path",
    "label_smoothing", "strength",
)  # fmt: skip
FILLED = 0.9  # of the room, at most: batches differ, and freed memory lies in pieces
# what PyTorch's allocator on CPUs, C++, and the system for a thread say where memory does not suffice
REFUSED = ("can't allocate memory", "bad_alloc", "Cannot allocate memory", "Resource temporarily unavailable")
PERIOD = 60.0  # seconds between two lines, where a card is waited for
STEPS = 2  # of a try: what the first allocates for good is there in the second


@dataclass(frozen=True)
class Tried:
    """What came of a try.

    Attributes:
        needed: bytes that were held at once; None where memory did not suffice.
        refusal: why so small a micro-batch is none of this network; empty where it is one.
    """

    needed: int | None
    refusal: str = ""


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
        """The one of that name; None where nobody wrote it."""
        return MemoryPlan(**json.loads(folder.read(name))) if folder.exists(name) else None

    def write(self, folder: Folder, name: str) -> None:
        folder.write(name, json.dumps(asdict(self)).encode())

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
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=spec.train.collective_seconds))
    room = room_of(context.device)
    known: list[MemoryPlan | None] = [_written(spec) if context.rank == 0 else None]
    dist.broadcast_object_list(known, group=group)
    plan = known[0]
    found: list[Any] = [None] * context.workers
    dist.all_gather_object(found, plan is not None and plan.needed <= room, group)
    if plan is not None and all(found):
        if context.rank == 0:
            with contextlib.suppress(OSError, UserError):  # another trial's, perhaps; it is at hand
                if not spec.folder.exists(PLAN):
                    _write(spec, plan)
        return replace(spec, train=plan.apply(spec.train))
    own: MemoryPlan | str
    try:
        own = chosen(spec, context.workers, room, lambda train: _in_own_process(replace(spec, train=train), context, room))
    except UserError as error:
        own = str(error)
    dist.all_gather_object(found, own, group)
    if problem := next((each for each in found if isinstance(each, str)), ""):
        raise UserError(problem)
    plan = min(found, key=lambda each: (not each.recomputed, each.micro_batch))  # the smallest machine's
    if context.rank == 0:
        _write(spec, plan)
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


def room_of(device: torch.device) -> int:
    """Bytes that this worker may hold: its share of a card, or of what Ray counts as this machine's memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, min(free, int(share_of_card() * total)) - CONTEXT)
    seen = ray.get_runtime_context()
    (machine,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == seen.get_node_id())
    return int(machine["memory"] * min(1.0, seen.get_assigned_resources().get("CPU", 1.0) / machine["CPU"]))


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
    for folder, name in _places(spec):
        if plan := wait_for(partial(MemoryPlan.read, folder, name), folder, spec.train.storage_minutes):
            return plan
    return None


def _write(spec: RunSpec, plan: MemoryPlan) -> None:
    for folder, name in _places(spec):
        plan.write(folder, name)


def tried_alone(spec: RunSpec, device: torch.device, room: int, cpus: int) -> MemoryPlan:
    """What a run of one worker needs, tried out by processes of the cluster that have a card for themselves.

    Args:
        room: that such a process may hold; see `room_alone`.
        cpus: of each.

    Raises:
        UserError: nothing fits.
    """
    trying = _try.options(num_cpus=cpus, num_gpus=int(device.type == "cuda"), max_retries=0)
    return chosen(
        spec, 1, room, lambda train: _answer(trying.remote(replace(spec, train=train), str(device), room, cpus, None))
    )


def room_alone(device: torch.device, waiting: Callable[[], None] = lambda: None) -> int:
    """Bytes that a process of the cluster may hold which has a card for itself.

    Args:
        waiting: called once a minute until there is such a card; what it raises ends the wait.
    """
    asked = _room.options(num_gpus=int(device.type == "cuda")).remote(device)
    try:
        while not ray.wait([asked], timeout=PERIOD)[0]:
            waiting()
    except BaseException:
        ray.cancel(asked)
        raise
    room: int = ray.get(asked)
    return room


@ray.remote(max_calls=1)
def _room(device: torch.device) -> int:
    return room_of(device)


def _in_own_process(spec: RunSpec, context: WorkerContext, room: int) -> Tried:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    trying = _try.options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _answer(trying.remote(spec, str(context.device), room, torch.get_num_threads(), visible))


def _answer(began: ray.ObjectRef[Tried]) -> Tried:
    try:
        return ray.get(began)
    except (OutOfMemoryError, WorkerCrashedError):  # Ray, or the system, has ended it
        return Tried(None)
    except RayTaskError as error:
        if isinstance(error.cause, UserError | RunError):
            raise error.cause from None  # as it would be raised here
        raise


@ray.remote(max_calls=1)
def _try(spec: RunSpec, device: str, room: int, threads: int, visible: str | None) -> Tried:
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible  # those of a worker that asks: this process was given none
    torch.set_num_threads(threads)
    computing = torch.device(device)
    prepare_process(computing)
    meet_nobody(computing)
    return tried(spec, computing, room)


def tried(spec: RunSpec, device: torch.device, room: int) -> Tried:
    """Compute a micro-batch in this process, as the run would: forward, backward and update, under DeepSpeed.

    Args:
        room: bytes that the process may hold meanwhile; of a card, or of the machine's memory.
    """
    train = spec.train
    try:
        with kept_to(room, device), own_disk(train) as settings:
            engine = Engine(spec.recipe, settings, STEPS, spec.seed, device)
            try:
                division(spec.recipe, engine.module, train, 1)
            except UserError as error:
                return Tried(0, str(error))
            prepared = spec.open_data()
            batch = heaviest(spec, prepared, train.packs_at_once)
            records = prepared.read(np.array([row for pack in batch for row in pack]))
            for step in range(STEPS):
                encoded = spec.recipe.encode(records, TrainingPass(spec.seed, 0))
                engine.step([(engine.prepare(encoded), MicroBatch(batch))], step)
            if device.type == "cpu":  # a checkpoint's copies are held in the same memory
                with TemporaryDirectory() as folder:
                    held = engine.save(Path(folder)), engine.export(Path(folder))
                    del held
            return Tried(_most_held(device))
    except (torch.OutOfMemoryError, MemoryError, NothingToComputeAgainError):
        return Tried(None)
    except (RuntimeError, OSError) as error:
        if any(words in str(error) for words in REFUSED):
            return Tried(None)
        raise


def heaviest(spec: RunSpec, prepared: Prepared, packs: int) -> GlobalBatch:
    """So many packs of the first epoch, those with most rows."""
    every = [pack for batch in spec.plan(prepared, 0).batches for pack in batch]
    return tuple(sorted(every, key=len, reverse=True)[:packs])


@contextlib.contextmanager
def kept_to(room: int, device: torch.device) -> Iterator[None]:
    """Within it this process is refused what is beyond the room, counting what it holds already.

    Raises:
        MemoryError: it holds more already.
    """
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / torch.cuda.mem_get_info(device)[1]), device)
        yield
        return
    held = {name: 1024 * int(value.split()[0]) for name, value in _status().items() if name in ("VmData", "VmRSS")}
    if held["VmRSS"] >= room:
        raise MemoryError
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (min(held["VmData"] + room - held["VmRSS"], 2**62), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _most_held(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * int(_status()["VmHWM"].split()[0])


def _status() -> dict[str, str]:
    """What Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
