"""Records are read from where the index says that they lie."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from raymed.data import places as module
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.storage.folder import Folder


def test_an_object_store_that_is_busy_is_asked_again_and_a_shard_that_is_not_there_is_told_at_once(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
):
    places = prepared.places(prepared.rows("all"))
    whole, pauses, opened = places.read(), list[float](), module._open_shard
    busy = replace(
        places, folder=Folder(fs.SubTreeFileSystem("/", fs.LocalFileSystem()), places.folder.path, "s3://bucket/data")
    )
    answers = iter([OSError("SLOW_DOWN"), OSError("NETWORK_CONNECTION")])

    def open_shard(folder: str, shard: str) -> pq.ParquetFile:
        if error := next(answers, None):
            raise error
        return opened(places.folder.uri, shard)

    monkeypatch.setattr(module, "_open_shard", lru_cache(0)(open_shard))
    monkeypatch.setattr(module.clock, "sleep", pauses.append)
    assert busy.read() == whole and len(pauses) == 2
    answers = iter([FileNotFoundError("no such key")])
    with pytest.raises(UserError, match=r"cannot read the shard .*no such key"):
        busy.read()
    answers = iter([OSError("SLOW_DOWN")] * 9)
    with pytest.raises(UserError, match=r"cannot read the shard .*SLOW_DOWN"):
        busy.read()
    assert len(pauses) == 2 + len(module.PAUSES)


def test_a_file_system_that_goes_away_while_rows_are_read_is_waited_for_and_a_shard_that_is_gone_is_not(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Streamed rows are read from shards all through a run: an unmounted NFS would fail the trial."""
    data, elsewhere = Path(shutil.copytree(prepared.folder.path, tmp_path / "data")), tmp_path / "elsewhere"
    places = Prepared.open(str(data)).places(prepared.rows("all"))
    whole, pauses = places.read(), list[float]()
    module._open_shard.cache_clear()
    data.rename(elsewhere)
    data.mkdir()  # the mount point

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            data.rmdir()
            elsewhere.rename(data)

    monkeypatch.setattr(module.clock, "sleep", sleep)
    assert places.read() == whole and pauses == [module.LOOK] * 3
    module._open_shard.cache_clear()
    shutil.rmtree(data / "shards")
    with pytest.raises(UserError, match="cannot read the shard"):
        places.read()
    assert len(pauses) == 3


def test_a_file_system_that_stays_away_fails_the_read_in_the_end(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = Path(shutil.copytree(prepared.folder.path, tmp_path / "data"))
    places = Prepared.open(str(data)).places(prepared.rows("all"))
    shutil.rmtree(data)
    module._open_shard.cache_clear()
    monkeypatch.setattr(module, "AWAY", 0.1)
    monkeypatch.setattr(module, "LOOK", 0.01)
    with pytest.raises(UserError, match="cannot read the shard"):
        places.read()
