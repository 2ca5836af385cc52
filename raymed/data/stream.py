"""The plan's rows, read and decoded by Ray Data, delivered to a worker in the plan's order.

Two readers with one behaviour. `Staged`: Ray Data reads the shards once a search into the object store, and every trial's
workers walk their plans over those blocks, zero-copy. `Streamed`, for sets that do not fit: Ray Data executes each
worker's plan, micro-batch by micro-batch, reading from the shards.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data

from raymed.cluster import connection as cluster
from raymed.compat.ray import block_references
from raymed.data.places import Places
from raymed.data.prepared import Prepared
from raymed.data.record import Record, records_from
from raymed.errors import RunError
from raymed.storage.availability import wait_for

log = logging.getLogger("raymed")

STORE_SHARE = 0.6  # of the smallest node's object store: the rest is for Ray Data's own blocks and for results


class Reader(Protocol):
    """Where a worker gets its records from."""

    def read(self, micro_batches: Sequence[Sequence[int]]) -> Iterator[list[Record]]:
        """The records of each micro-batch (row numbers of the index), in order."""
        ...


@dataclass(frozen=True)
class Staged:
    """Decoded rows in Ray's object store, shared by all workers of a node.

    Attributes:
        blocks: references to Arrow tables in the schema `RECORD`.
        places: reference to int64 [3, n]: index row numbers held, ascending, and of each its block and its row within.
        size: bytes of what the blocks hold.
    """

    blocks: list[ray.ObjectRef]
    places: ray.ObjectRef
    size: int

    @classmethod
    def of(cls, blocks: list[ray.ObjectRef], sizes: Sequence[int], rows: np.ndarray, size: int) -> Staged:
        """Blocks of so many rows each, which are these of the index, one after the other, and `size` bytes."""
        order = np.argsort(rows)
        block = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(len(rows)) - np.repeat(np.cumsum([0, *sizes])[:-1], sizes)
        return cls(blocks, ray.put(np.stack([rows[order], block[order], place[order]])), size)

    def open(self) -> StagedReader:
        return StagedReader(self)


class StagedReader:
    """Reads from staged blocks; a block is mapped once per worker and its pixels are never copied."""

    def __init__(self, staged: Staged) -> None:
        self._blocks = staged.blocks
        self._rows, self._block_of, self._place_of = ray.get(staged.places)
        self._records: dict[int, list[Record]] = {}

    def read(self, micro_batches: Sequence[Sequence[int]]) -> Iterator[list[Record]]:
        for rows in micro_batches:
            found = np.searchsorted(self._rows, rows)
            if not np.array_equal(self._rows.take(found, mode="clip"), rows):
                raise RunError("rows are asked for that were not staged: please report this")
            blocks, places = self._block_of[found].tolist(), self._place_of[found].tolist()
            yield [self._block(block)[place] for block, place in zip(blocks, places, strict=True)]

    def _block(self, block: int) -> list[Record]:
        if block not in self._records:
            self._records[block] = records_from(ray.get(self._blocks[block]))
        return self._records[block]


@dataclass(frozen=True)
class Streamed:
    """Rows that stay in the shards.

    Attributes:
        data: URI of the prepared data: their index, which is large, does not travel with a run's configuration.
        digest: what they hold; empty where any will do. A row's number would name another patient in others.
        storage_minutes: How long shards that go away are waited for.
    """

    data: str
    digest: str = ""
    storage_minutes: float = 20.0
    size: ClassVar[int] = 0  # of the object store

    def open(self) -> StreamedReader:
        return StreamedReader(Prepared.open(self.data, self.digest), self.storage_minutes)


@dataclass(frozen=True)
class StreamedReader:
    """Executes plans with Ray Data, straight from the shards; without a claim on CPUs, of which workers may hold all."""

    prepared: Prepared
    storage_minutes: float

    def read(self, micro_batches: Sequence[Sequence[int]]) -> Iterator[list[Record]]:
        if not micro_batches:
            return
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        items = [{"slot": slot, "places": self.prepared.places(rows)} for slot, rows in enumerate(micro_batches)]
        blocks = max(1, len(items) // 4)
        dataset = ray.data.from_items(items, override_num_blocks=blocks)
        tables = dataset.map_batches(
            partial(_read_slot, storage_minutes=self.storage_minutes),
            batch_size=1,
            batch_format="numpy",
            num_cpus=0,
            concurrency=min(blocks, max(2, _own_cpus())),
        ).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        yield from _regroup(tables)


def _own_cpus() -> int:
    """CPUs that this process has to itself: other runs read on the others."""
    context = ray.get_runtime_context()
    is_worker = context.get_actor_id() is not None
    return int(context.get_assigned_resources().get("CPU", 1)) if is_worker else os.cpu_count() or 1


@dataclass(frozen=True)
class ShardReader:
    """Reads each micro-batch from the shards when its turn comes, in this process."""

    prepared: Prepared

    def read(self, micro_batches: Sequence[Sequence[int]]) -> Iterator[list[Record]]:
        for rows in micro_batches:
            yield self.prepared.read(rows) if rows else []


def stage(prepared: Prepared, rows: np.ndarray) -> Staged:
    """Read `rows` (ascending) from the shards into the object store, with Ray Data, and check them against the index.

    Of a shard only the row groups are read that hold one: of thin slices few are chosen.

    Raises:
        UserError: a shard is missing, damaged or exchanged.
    """
    if not len(rows):
        return Staged.of([], [], rows, 0)
    shards = np.unique(prepared.columns(rows, ["shard"])["shard"], return_inverse=True)[1]
    parts = np.split(rows[np.argsort(shards, kind="stable")], np.cumsum(np.bincount(shards))[:-1])
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    # Without a claim on CPUs: blocks that are lost with a machine come back while workers hold every CPU there is.
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    places = [prepared.places(part) for part in parts]
    dataset = ray.data.from_items([{"places": each} for each in places], override_num_blocks=len(places)).map_batches(
        _read_shard, batch_size=1, batch_format="numpy", num_cpus=0, concurrency=min(cpus, len(places))
    )
    try:
        blocks, sizes = block_references(dataset.materialize())
    except Exception:  # Ray Data's error is about tasks, and not about the shard
        for each in places:
            each.read()
        raise
    return Staged.of(blocks, sizes, np.concatenate(parts), prepared.pixel_bytes(rows))


def fits_in_memory(size: int) -> bool:
    """Whether so many bytes of blocks fit into the smallest object store, also of the machines that are still to come."""
    return size <= STORE_SHARE * cluster.smallest_store()


def open_reader(prepared: Prepared, rows: np.ndarray, storage_minutes: float, beside: int = 0) -> Staged | Streamed:
    """Stage the rows where they fit, stream them otherwise; a line says which.

    Args:
        storage_minutes: how long shards that are streamed, and go away, are waited for.
        beside: bytes that are staged of other data, for the same workers.
    """
    size = prepared.pixel_bytes(rows)
    if fits_in_memory(size + beside):
        log.info("data: %d records (%.0f MiB) decoded once into the object store", len(rows), size / 2**20)
        return stage(prepared, rows)
    log.info(
        "data: %d records (%.0f MiB) do not fit the object store: streamed from the shards each epoch",
        *(len(rows), size / 2**20),
    )
    return Streamed(prepared.folder.uri, prepared.digest, storage_minutes)


Item = TypeVar("Item")


def ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """The same items, made up to `depth` ahead in a thread; an error of the maker is raised here."""
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            try:
                waiting.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()


def _read_shard(batch: Any) -> Any:
    places: Places = batch["places"][0]
    return places.read()


def _read_slot(batch: Any, storage_minutes: float) -> Any:
    places: Places = batch["places"][0]
    table = wait_for(places.reach, places.folder, storage_minutes)
    return table.append_column("slot", pa.array(np.full(table.num_rows, batch["slot"][0], dtype=np.int64)))


def _regroup(tables: Iterable[pa.Table]) -> Iterator[list[Record]]:
    """Blocks hold one or more micro-batches, or parts of them: give each micro-batch once it is whole."""
    current, records = 0, list[Record]()
    for table in tables:
        for slot, record in zip(table["slot"].to_pylist(), records_from(table), strict=True):
            if slot != current:
                yield records
                current, records = slot, []
            records.append(record)
    yield records
