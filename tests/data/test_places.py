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


def test_records_of_a_file_system_that_is_away_are_not_taken_for_damaged(prepared: Prepared, tmp_path: Path):
    """Rows are streamed from shards all through a run: an unmounted NFS failed the trial for good."""
    data, elsewhere = Path(shutil.copytree(prepared.folder.path, tmp_path / "data")), tmp_path / "elsewhere"
    places = Prepared.open(str(data)).places(prepared.rows("all"))
    whole = places.read()
    data.rename(elsewhere)
    module._open_shard.cache_clear()
    with pytest.raises(FileNotFoundError):
        places.reach()
    data.mkdir()  # the mount point
    with pytest.raises(FileNotFoundError):
        places.reach()
    data.rmdir()
    elsewhere.rename(data)
    assert places.reach() == whole
    shutil.rmtree(data / "shards")
    module._open_shard.cache_clear()
    with pytest.raises(UserError, match="cannot read the shard"):
        places.reach()


def test_a_shard_whose_open_file_went_stale_with_its_server_is_opened_anew(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
):
    places, opened = prepared.places(prepared.rows("all")), module._open_shard
    whole, errors = places.read(), iter([OSError(116, "Stale file handle")])

    def open_shard(folder: str, shard: str) -> pq.ParquetFile:
        if error := next(errors, None):
            raise error
        return opened(folder, shard)

    monkeypatch.setattr(module, "_open_shard", lru_cache(0)(open_shard))
    assert places.read() == whole
