"""Damaged or exchanged shards must not be read for what the index vouches for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_prepared

from raymed.data.integrity import describe, require_same
from raymed.data.prepared import Manifest, Prepared
from raymed.data.record import BLAKE3, DIGESTS, INDEX, RECORD, SHA256, picture_digest
from raymed.data.stream import stage
from raymed.errors import UserError
from raymed.storage.folder import Folder

Change = Callable[[dict[str, Any]], dict[str, Any]]


def rewrite(shard: Path, change: Change) -> None:
    """Change the rows of a shard, whose row groups stay where they were."""
    rows = [change(row) for row in pq.read_table(shard).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD), shard, row_group_size=10)


def one_grey_level(row: dict[str, Any]) -> dict[str, Any]:
    (image,) = row["images"]
    pixels = bytes([image["pixels"][0] ^ 1]) + image["pixels"][1:]
    return row | {"images": [image | {"pixels": pixels}]}


CHANGES: dict[str, tuple[Change, str]] = {
    "labels": (lambda row: row | {"label": 0}, r"its label is 0, and the index says [123]"),
    "patients": (lambda row: row | {"patient": "p000"}, r"its patient is p000, and the index says p0\d\d"),
    "one bit of a pixel": (one_grey_level, "its pixels are not those that were prepared"),
    "a picture's size": (
        lambda row: row | {"images": [row["images"][0] | {"height": 14, "width": 56}]},
        "its pixels are not those that were prepared",
    ),
}


@pytest.fixture
def copy(prepared: Prepared, tmp_path: Path) -> Prepared:
    return Prepared.open(str(shutil.copytree(prepared.folder.path, tmp_path / "copy")))


@pytest.mark.parametrize("kind", CHANGES)
def test_a_record_that_the_index_does_not_name_is_not_read(kind: str, copy: Prepared) -> None:
    change, reason = CHANGES[kind]
    rewrite(Path(copy.folder.path) / "shards" / "part-1.parquet", change)
    with pytest.raises(UserError, match=rf"part-1\.parquet, record p0\d\d/\d: {reason}"):
        copy.read(copy.rows("all"))
    others = [row for row in copy.rows("all") if copy.index["shard"][row].as_py() != "part-1.parquet"]
    assert len(copy.read(others)) == len(others) > 0


@pytest.mark.parametrize("function", DIGESTS)
def test_data_of_each_function_are_read_and_checked(function: str, tmp_path: Path) -> None:
    """An earlier raymed knew pictures by SHA-256: a night that was begun with it goes on."""
    made = write_prepared(tmp_path / "data", patients=8, pictures_by=function)
    assert len(made.read(made.rows("all"))) == 32
    rewrite(tmp_path / "data" / "shards" / "part-0.parquet", one_grey_level)
    with pytest.raises(UserError, match="its pixels are not those that were prepared"):
        made.read([0])


def test_a_manifest_that_does_not_name_its_function_is_of_sha_256_and_an_unknown_one_is_refused(copy: Prepared) -> None:
    manifest = json.loads(copy.manifest.to_json())
    assert Manifest.from_json(json.dumps(manifest | {"pictures_by": BLAKE3}).encode(), "here").pictures_by == BLAKE3
    del manifest["pictures_by"]
    assert Manifest.from_json(json.dumps(manifest).encode(), "here").pictures_by == SHA256
    with pytest.raises(UserError, match="here: pictures are known by 'crc', which this raymed does not compute"):
        Manifest.from_json(json.dumps(manifest | {"pictures_by": "crc"}).encode(), "here")


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
def test_staging_stops_at_a_record_that_the_index_does_not_name(kind: str, copy: Prepared, cluster: None) -> None:
    change, reason = CHANGES[kind]
    rewrite(Path(copy.folder.path) / "shards" / "part-1.parquet", change)
    with pytest.raises(UserError, match=rf"part-1\.parquet, record p0\d\d/\d: {reason}"):
        stage(copy, copy.rows("all"))


@pytest.mark.slow
def test_staging_names_a_shard_that_cannot_be_read(copy: Prepared, cluster: None) -> None:
    shard = Path(copy.folder.path) / "shards" / "part-1.parquet"
    content = bytearray(shard.read_bytes())
    content[20:400] = bytes(380)
    shard.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(shard))):
        stage(copy, copy.rows("all"))


def test_every_input_picture_of_a_record_counts_and_no_other(tmp_path: Path) -> None:
    pixels = [np.full((2, 2, 1), grey, np.uint8) for grey in range(4)]
    roles = ("input", "mask", "input", "input")
    images = [
        {"role": role, "place": place, "height": 2, "width": 2, "channels": 1, "pixels": grey.tobytes()}
        for place, (role, grey) in enumerate(zip(roles, pixels, strict=True))
    ]
    row = {"id": "a", "patient": "a", "study": "a", "position": 0, "source": "", "images": images, "messages": []}
    bare = row | {"id": "b", "images": []}
    digests = [picture_digest(pixels[place]) for place in (0, 2, 3)]
    further = [{"digest": digest, "hash": None} for digest in digests[1:]]
    lines = [
        row | {"digest": digests[0], "further": further, "shard": "s"},
        bare | {"digest": picture_digest(None), "shard": "s"},
    ]
    index = pa.Table.from_pylist([{key: line.get(key) for key in INDEX.names} for line in lines], schema=INDEX)
    records = pa.Table.from_pylist([row, bare], schema=RECORD)
    require_same(describe(records, BLAKE3), index, Folder.at(tmp_path))
    images[3]["pixels"] = bytes(4)
    with pytest.raises(UserError, match="record a: its pixels"):
        require_same(describe(pa.Table.from_pylist([row, bare], schema=RECORD), BLAKE3), index, Folder.at(tmp_path))
