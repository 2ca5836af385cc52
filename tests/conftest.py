"""Small prepared data written directly, and one Ray for all tests that need it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pkgutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a file has one core: two files' threads would wait for one another
os.environ.setdefault("RAY_DEDUP_LOGS", "1")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # tests use few of those that Ray starts unasked
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # as jobs have it before they import it

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymed import systems
from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.prepared import MANIFEST, Manifest, Prepared, digest_of
from raymed.data.record import BLAKE3, INDEX, RECORD, picture_digest

hypothesis.settings.register_profile("whatever the load", deadline=None)
hypothesis.settings.load_profile("whatever the load")

ROOMS = str(Path(__file__).parent / "rooms")
systems.__path__.append(ROOMS)  # the machine is tested on the toy system there

TESTED = ("compat", "data", "evaluation", "recipes", "registry", "storage", "tracking", "training", "tuning")
"""Folders of the machine's tests, for which there is no other system."""

RAY_TOKEN = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a-token-for-tests-only-0123456789abcdef0",
    "RAY_raylet_start_wait_time_s": "180",
}
"""Environment of a cluster that a test starts in processes of its own, on a machine that may be busy."""

_STATUS = pytest.StashKey[int]()
_SYSTEMS = f"{systems.__name__}."


def install(folder: Path, name: str, version: str) -> None:
    """The traces of a package of that name, for `importlib.metadata` to find once `folder` is on the path."""
    traces = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    traces.mkdir()
    (traces / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def write_prepared(
    folder: Path,
    patients: int = 24,
    slices: int = 4,
    size: int = 28,
    seed: int = 0,
    source: Callable[[int, int], str] = lambda patient, label: "made",
    pictures_by: str = BLAKE3,
) -> Prepared:
    """Prepared data of four classes that a small model can learn: a bright square whose corner is the class.

    Of every 8 patients 6 are train, 1 val, 1 test, the classes taking turns within each split.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        label = (patient // 8 + patient) % 4
        split = {6: "val", 7: "test"}.get(patient % 8, "train")
        for position in range(slices):
            pixels = draw.integers(0, 90, (size, size, 1), dtype=np.uint8)
            half = size // 2
            top, left = (label // 2) * half, (label % 2) * half
            pixels[top : top + half, left : left + half] += 60
            rows.append(
                {
                    "id": f"p{patient:03d}/{position}",
                    "patient": f"p{patient:03d}",
                    "study": f"p{patient:03d}",
                    "position": position,
                    "label": label,
                    "source": source(patient, label),
                    "images": [_image(pixels)],
                    "messages": [],
                    "cost": pixels.size,
                    "digest": picture_digest(pixels, pictures_by),
                    "hash": None,
                    "group": f"p{patient:03d}",
                    "split": split,
                    "fold": None if split == "test" else patient % 3,
                }
            )
    (folder / "shards").mkdir(parents=True)
    shard_rows, group_rows = 40, 10
    for start in range(0, len(rows), shard_rows):
        name = f"part-{start // shard_rows}.parquet"
        part = rows[start : start + shard_rows]
        for place, row in enumerate(part):
            row |= {"shard": name, "row_group": place // group_rows, "row": place % group_rows}
        table = pa.Table.from_pylist([{key: row[key] for key in RECORD.names} for row in part], schema=RECORD)
        pq.write_table(table, folder / "shards" / name, row_group_size=group_rows)
    index = pa.Table.from_pylist([{key: row.get(key) for key in INDEX.names} for row in rows], schema=INDEX)
    pq.write_table(index, folder / "index.parquet")
    content = (folder / "index.parquet").read_bytes()
    manifest = Manifest(
        digest=digest_of(content),
        index="index.parquet",
        index_digest=digest_of(content),
        studies="",
        quarantine_digest="",
        source="made",
        labels=LabelTable.open("lung").to_dict(),
        settings={"image": asdict(ImageSettings(size=size))},
        patients={},
        slices={},
        sources={},
        near_duplicates=[],
        same_pixels=0,
        quarantined=0,
        ignored={},
        shards={},
        versions={},
        pictures_by=pictures_by,
    )
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return Prepared.open(str(folder))


def _image(pixels: np.ndarray) -> dict[str, object]:
    height, width, channels = pixels.shape
    return {
        "role": "input",
        "place": 0,
        "height": height,
        "width": width,
        "channels": channels,
        "pixels": pixels.tobytes(),
    }


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: to look through it for what nobody needs takes seconds, now and in every test."""
    gc.disable()
    yield
    gc.freeze()
    gc.set_threshold(100_000)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait most come first, those with Ray and those with processes, so that nothing long is left for the end."""

    def haste(item: pytest.Item) -> int:
        return 2 if "cluster" in getattr(item, "fixturenames", ()) else 1 if item.get_closest_marker("slow") else 0

    most: dict[Path, int] = {}
    for item in items:
        most[item.path] = max(most.get(item.path, 0), haste(item))
    items.sort(key=lambda item: -most[item.path])


def pytest_collection_finish(session: pytest.Session) -> None:
    """MLflow's tables are made once and copied: its migrations take more than a second of every new database."""
    if "mlflow" not in sys.modules:
        return
    from mlflow.store.db import utils

    initialize, template = utils._initialize_tables, sqlite3.connect(":memory:", check_same_thread=False)

    def copied(engine: Any) -> None:
        with contextlib.closing(sqlite3.connect(engine.url.database)) as database:
            empty = not database.execute("select count(*) from sqlite_master").fetchone()[0]
            if empty and template.execute("select count(*) from sqlite_master").fetchone()[0]:
                template.backup(database)
                return
            initialize(engine)
            if empty:
                database.backup(template)

    utils._initialize_tables = copied


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave as jobs do: in a normal exit, threads of Arrow now and then abort a run whose tests all passed."""
    if _STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


@cache
def _other_rooms() -> tuple[str, ...]:
    """The names of the systems but the toy. What they share is imported, to stay when they go."""
    inside = {module.name: module.ispkg for module in pkgutil.iter_modules(systems.__path__)}
    for name in (name for name, is_room in inside.items() if not is_room):
        importlib.import_module(f"{systems.__name__}.{name}")
    return tuple(f"{systems.__name__}.{name}" for name, is_room in inside.items() if is_room and name != "toy")


@pytest.fixture(autouse=True)
def _other_rooms_are_gone(request: pytest.FixtureRequest) -> Iterator[None]:
    """The machine's tests that start nothing, and what they call, find the toy system and none else."""
    folder = request.path.relative_to(Path(__file__).parent).parts[0]
    if folder not in TESTED or request.node.get_closest_marker("slow"):
        yield
        return
    rooms = _other_rooms()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "__path__", [ROOMS])
        theirs = tuple(f"{room}." for room in rooms)
        entered = [name for name in sys.modules if name.startswith(_SYSTEMS)]  # first, as there are ten thousand modules
        for name in [name for name in entered if name in rooms or name.startswith(theirs)]:
            patch.delitem(sys.modules, name)
        for room in rooms:
            patch.delattr(systems, room.rpartition(".")[2], raising=False)
        yield


@pytest.fixture(autouse=True)
def _address_stays() -> Iterator[None]:
    """A test that leaves MLflow's address behind, as its `set_tracking_uri` does, sends the jobs of later tests there."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    assert os.environ.get("MLFLOW_TRACKING_URI") == before


@pytest.fixture(autouse=True)
def _ray_stays() -> Iterator[None]:
    """A test that ends the session's Ray leaves later ones one that Ray starts by itself, whose workers are slow."""
    ray = sys.modules.get("ray")
    was_there = ray is not None and ray.is_initialized()
    yield
    assert ray is None or ray.is_initialized() or not was_there, "it has ended the session's Ray"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_prepared(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="session")
def cluster():
    """Ray on this machine, for the whole test session."""
    import ray
    from forks import quick_workers
    from ray import cloudpickle

    from raymed.cluster.connection import connect
    from raymed.systems.toy import recipe

    cloudpickle.register_pickle_by_value(recipe)  # workers do not find the tests' rooms
    with quick_workers():
        connect()
    yield
    ray.shutdown()
