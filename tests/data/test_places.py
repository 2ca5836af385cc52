"""Records are read from where the index says that they lie."""

from __future__ import annotations

from dataclasses import replace

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

    monkeypatch.setattr(module, "_open_shard", open_shard)
    monkeypatch.setattr(module.clock, "sleep", pauses.append)
    assert busy.read() == whole and len(pauses) == 2
    answers = iter([FileNotFoundError("no such key")])
    with pytest.raises(UserError, match=r"cannot read the shard .*no such key"):
        busy.read()
    answers = iter([OSError("SLOW_DOWN")] * 9)
    with pytest.raises(UserError, match=r"cannot read the shard .*SLOW_DOWN"):
        busy.read()
    assert len(pauses) == 2 + len(module.PAUSES)
