"""The stream hands a worker exactly the rows of its plan, in the plan's order, whichever reader it has."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import RAY_TOKEN, write_prepared
from forks import starting_quick

from raymed.data import stream
from raymed.data.micro_batches import Division
from raymed.data.plan import plan_epoch
from raymed.data.prepared import Prepared
from raymed.data.stream import Staged, Streamed, ahead, open_reader, stage
from raymed.errors import CommonError, RunError, UserError

Source = Callable[[Prepared, np.ndarray], Staged | Streamed]
SOURCES = {"staged": stage, "streamed": lambda prepared, rows: Streamed(prepared.folder.uri)}
ray_is_slow = pytest.mark.slow
MINUTES = 20.0  # that a storage is waited for


def plan_of(rows: np.ndarray, epoch: int, worker: int = 0, workers: int = 1) -> list[list[int]]:
    """The rows of a worker's micro-batches of an epoch; batches of 10 leave a smaller one at the end."""
    batches = plan_epoch([(row,) for row in rows.tolist()], 10, seed=3, epoch=epoch, left_out={}).batches
    shares = [micro for batch in batches for micro in Division(4, workers).share(batch, worker) if micro.counts]
    return [[row for pack in micro.packs for row in pack] for micro in shares]


@ray_is_slow
@pytest.mark.parametrize("source", SOURCES)
def test_records_come_in_the_plans_order_each_row_once(source: str, prepared: Prepared, cluster: None) -> None:
    rows = prepared.rows("train")
    reader = SOURCES[source](prepared, rows).open()
    for epoch in (0, 1):
        plan = plan_of(rows, epoch)
        read = list(reader.read(plan))
        for micro, records in zip(plan, read, strict=True):
            wanted = prepared.read(micro)
            assert [record.id for record in records] == [record.id for record in wanted]
            assert [record.label for record in records] == [record.label for record in wanted]
            for record, same in zip(records, wanted, strict=True):
                assert np.array_equal(record.images[0].pixels, same.images[0].pixels)
        ids = [record.id for records in read for record in records]
        assert sorted(ids) == sorted(prepared.columns(rows, ["id"])["id"])


@ray_is_slow
@pytest.mark.parametrize("source", SOURCES)
def test_workers_read_the_epoch_between_them(source: str, prepared: Prepared, cluster: None) -> None:
    rows = prepared.rows("train")
    opened = SOURCES[source](prepared, rows)
    ids = [
        record.id for worker in range(3) for records in opened.open().read(plan_of(rows, 0, worker, 3)) for record in records
    ]
    assert sorted(ids) == sorted(prepared.columns(rows, ["id"])["id"])


@ray_is_slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_resumed_epoch_reads_the_rest_of_its_plan(source: str, prepared: Prepared, cluster: None) -> None:
    rows = prepared.rows("train")
    opened, plan = SOURCES[source](prepared, rows), plan_of(rows, 0)
    whole = [[record.id for record in records] for records in opened.open().read(plan)]
    rest = [[record.id for record in records] for records in opened.open().read(plan[7:])]
    assert rest == whole[7:]
    assert list(opened.open().read([])) == []


@ray_is_slow
def test_staged_pixels_are_views_of_the_store_and_not_copies(prepared: Prepared, cluster: None) -> None:
    reader = stage(prepared, prepared.rows("train")).open()
    (records,) = reader.read([prepared.rows("train")[:4].tolist()])
    for record in records:
        pixels = record.images[0].pixels
        assert not pixels.flags.owndata and not pixels.flags.writeable


def test_rows_come_out_of_their_blocks_and_one_that_was_not_staged_is_an_error(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.get", lambda reference: reference)  # the object store, in this process
    shard = pq.read_table(Path(prepared.folder.path) / "shards" / "part-0.parquet")  # the first 40 rows
    places = np.stack([np.arange(40), np.repeat([0, 1], 20), np.tile(np.arange(20), 2)])
    reader = Staged([shard.slice(0, 20), shard.slice(20)], places, 0).open()  # type: ignore[list-item, arg-type]
    for records, rows in zip(reader.read([[25, 3], [0]]), ([25, 3], [0]), strict=True):
        assert [record.id for record in records] == [record.id for record in prepared.read(rows)]
    for absent in (40, 95):
        with pytest.raises(RunError, match="not staged"):
            list(reader.read([[3, absent]]))


def test_what_fits_alone_is_streamed_where_other_data_of_the_same_workers_fill_the_store(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search over two data sets judged each by itself, and staged both."""
    monkeypatch.setattr("raymed.data.stream.stage", lambda prepared, rows: "staged")
    monkeypatch.setattr("raymed.data.stream.cluster.smallest_store", lambda: 2**30)
    rows = prepared.rows("train")
    assert open_reader(prepared, rows, MINUTES) == "staged"
    assert isinstance(open_reader(prepared, rows, MINUTES, beside=2**30), Streamed)


def test_what_a_worker_is_told_does_not_grow_with_the_data(prepared: Prepared) -> None:
    """The index, 315 bytes a slice, used to travel with every run's configuration."""
    assert len(pickle.dumps(Streamed(prepared.folder.uri))) < 1000


@ray_is_slow
def test_staged_rows_travel_as_references(prepared: Prepared, cluster: None) -> None:
    few, many = (stage(prepared, prepared.rows("train")[:count]) for count in (4, 72))
    assert len(many.blocks) - len(few.blocks) < 4
    assert not any(isinstance(value, np.ndarray) for value in vars(many).values())


@ray_is_slow
def test_a_missing_shard_reaches_the_reader_as_an_error_that_names_it(tmp_path: Path, cluster: None) -> None:
    prepared = write_prepared(tmp_path / "data", patients=8)
    rows = prepared.rows("train")
    shard = prepared.columns(rows[:1], ["shard"])["shard"][0]
    (tmp_path / "data" / "shards" / shard).unlink()
    with pytest.raises(Exception, match=shard):
        list(Streamed(prepared.folder.uri).open().read([rows.tolist()]))
    with pytest.raises(Exception, match=shard):
        stage(prepared, rows)


@ray_is_slow
def test_streamed_rows_wait_for_their_shards_as_long_as_the_run_waits_for_its_storage(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "fits_in_memory", lambda size: False)
    prepared = write_prepared(tmp_path / "data", patients=8)
    rows = prepared.rows("train")
    reader = open_reader(prepared, rows, storage_minutes=0.01).open()
    (tmp_path / "data").rename(tmp_path / "unmounted")
    with pytest.raises(Exception, match=r"has been away from \S+ for 0.01 minutes"):
        list(reader.read([rows.tolist()]))
    (tmp_path / "unmounted").rename(tmp_path / "data")
    assert len(list(reader.read([rows.tolist()]))) == 1


@ray_is_slow
def test_a_row_that_its_shard_has_lost_is_an_error(tmp_path: Path, cluster: None) -> None:
    prepared = write_prepared(tmp_path / "data", patients=8)
    other = write_prepared(tmp_path / "other", patients=4)
    shard = prepared.columns(prepared.rows("all")[:1], ["shard"])["shard"][0]
    (tmp_path / "data" / "shards" / shard).write_bytes((tmp_path / "other" / "shards" / shard).read_bytes())
    assert len(other.rows("all")) < len(prepared.rows("all"))
    with pytest.raises(UserError, match=rf"{shard} does not hold the record"):
        stage(prepared, prepared.rows("all"))


@ray_is_slow
def test_rows_that_do_not_fit_the_store_are_streamed(
    prepared: Prepared, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prepared.rows("train")
    staged = open_reader(prepared, rows, MINUTES)
    assert isinstance(staged, Staged) and staged.size == prepared.pixel_bytes(rows)
    assert isinstance(open_reader(prepared, rows, MINUTES, beside=1 << 40), Streamed), "of other data lies there already"
    monkeypatch.setattr(stream, "STORE_SHARE", 1e-9)
    assert isinstance(open_reader(prepared, rows, MINUTES), Streamed)


def test_rows_are_streamed_from_the_data_that_a_run_began_with_and_from_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may be prepared there between a worker's look at the digest and its reader's opening of the index."""
    monkeypatch.setattr(stream, "fits_in_memory", lambda size: False)
    prepared = write_prepared(tmp_path / "data", patients=8)
    source = open_reader(prepared, prepared.rows("train"), MINUTES)
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes()) | {"digest": "other"}), "utf-8")
    with pytest.raises(CommonError, match="was prepared again"):
        source.open()


def test_ahead_gives_the_same_items_in_order() -> None:
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []


def test_ahead_hands_on_the_makers_error_behind_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third is broken")

    taken = []
    with pytest.raises(ValueError, match="third is broken"):
        for item in ahead(items()):
            taken.append(item)
    assert taken == [1, 2]


@ray_is_slow
def test_blocks_lost_with_a_machine_come_back_though_workers_hold_every_cpu(prepared: Prepared) -> None:
    command = starting_quick(Path(__file__).with_name("lost_blocks.py"), prepared.folder.path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | RAY_TOKEN)
    assert done.stdout.splitlines()[-1:] == [str(prepared.index.num_rows)], done.stderr[-2000:]


def test_ahead_makes_no_more_than_its_depth_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for item in range(50):
            made.append(item)
            yield item

    waiting = ahead(items(), depth=3)
    next(waiting)
    threading.Event().wait(0.5)
    assert len(made) <= 1 + 3 + 1  # taken, waiting, and the one in the maker's hand
    waiting.close()  # type: ignore[attr-defined]


def test_ahead_stops_its_thread_when_the_reader_leaves() -> None:
    before = set(threading.enumerate())

    def endless() -> Iterator[int]:
        while True:
            yield 0

    for _ in ahead(endless()):
        break
    assert set(threading.enumerate()) <= before, "an abandoned maker must not go on reading"
