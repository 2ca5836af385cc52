"""Whether a run's step fits into memory, by trying it.

A try is a step on a network of its own, in a process of its own, which may come to hold no more than the worker may: what
does not fit ends there, and nobody else is short of memory.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import ray
import torch
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymed.data.micro_batches import MicroBatch
from raymed.data.plan import GlobalBatch
from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.recipes.recipe import TrainingPass
from raymed.training.cards import CONTEXT, share_of_card
from raymed.training.engine import Engine, division
from raymed.training.network import NothingToComputeAgainError
from raymed.training.process import prepare_process
from raymed.training.rendezvous import meet_nobody
from raymed.training.spec import RunSpec
from raymed.training.worker_context import WorkerContext
from raymed.training.zero import own_disk

# what PyTorch's allocator on CPUs, C++, and the system for a thread say where memory does not suffice
REFUSED = ("can't allocate memory", "bad_alloc", "Cannot allocate memory", "Resource temporarily unavailable")
PERIOD = 60.0  # seconds between two lines, where a card is waited for
STEPS = 2  # of a try: what the first allocates for good is there in the second
ALONE = {"env_vars": {"RAYMED_TRY": "1"}}  # an environment of tries alone: their processes have held nothing else before


@dataclass(frozen=True)
class Tried:
    """What came of a try.

    Attributes:
        needed: bytes that were held at once; None where memory did not suffice.
        refusal: why so small a micro-batch is none of this network; empty where it is one.
    """

    needed: int | None
    refusal: str = ""


def room_of(device: torch.device) -> int:
    """Bytes that this worker may hold: its share of a card, or of what Ray counts as this machine's memory."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, min(free, int(share_of_card() * total)) - CONTEXT)
    seen = ray.get_runtime_context()
    (machine,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == seen.get_node_id())
    return int(machine["memory"] * min(1.0, seen.get_assigned_resources().get("CPU", 1.0) / machine["CPU"]))


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


def tried_alone(spec: RunSpec, device: torch.device, room: int, cpus: int) -> Tried:
    """By a process of the cluster that has so many CPUs, and a card, for itself."""
    trying = _try.options(num_cpus=cpus, num_gpus=int(device.type == "cuda"), max_retries=0)
    return _answer(trying.remote(spec, str(device), room, cpus, None))


def tried_here(spec: RunSpec, context: WorkerContext, room: int) -> Tried:
    """By a process of its own beside this worker, on its device."""
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


@ray.remote(max_calls=1, runtime_env=ALONE)
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
