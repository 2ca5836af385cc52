"""What preparing leaves in the folder, and what it removes."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raymed.data import publish
from raymed.data.prepared import MANIFEST, Prepared
from raymed.data.publish import remove_unread
from raymed.data.readers import READERS, read_digests, reading
from raymed.errors import CommonError
from raymed.storage.folder import Folder

INDEX, OTHER = "index-aaaaaaaaaaaa.parquet", "index-bbbbbbbbbbbb.parquet"


@pytest.fixture
def data(prepared: Prepared, tmp_path: Path) -> Path:
    """As preparing names its files."""
    folder = Path(shutil.copytree(prepared.folder.path, tmp_path / "data", ignore=shutil.ignore_patterns(READERS)))
    (folder / prepared.manifest.index).rename(folder / INDEX)
    shards = dict.fromkeys((path.name for path in (folder / "shards").iterdir()), 1)
    (folder / MANIFEST).write_bytes(replace(prepared.manifest, index=INDEX, shards=shards).to_json())
    return folder


def replaced(data: Path) -> Prepared:
    """The data, whose place others have taken that share their shards."""
    first = Prepared.open(str(data))
    (data / first.manifest.earlier_name).write_bytes((data / MANIFEST).read_bytes())
    shutil.copy(data / INDEX, data / OTHER)
    other = replace(first.manifest, digest="f" * 32, index=OTHER)
    (data / MANIFEST).write_bytes(other.to_json())
    return first


def test_data_stay_for_their_reader_and_go_with_it(data: Path) -> None:
    first = replaced(data)
    with reading(str(data), first.digest):
        remove_unread(first.folder, Prepared.open(str(data)).manifest)
        assert Prepared.open(str(data), first.digest).index.equals(first.index)
    remove_unread(first.folder, Prepared.open(str(data)).manifest)
    with pytest.raises(CommonError, match="was prepared again"):
        Prepared.open(str(data), first.digest)
    assert not (data / first.manifest.index).exists()


def test_a_search_that_opens_data_while_they_are_removed_keeps_them(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had noted that it reads them after the look for readers, and opened them before their manifest went."""
    first = replaced(data)
    with contextlib.ExitStack() as search:

        def late(folder: Folder) -> set[str]:
            found = read_digests(folder)
            search.enter_context(reading(str(data), first.digest))
            return found

        monkeypatch.setattr(publish, "read_digests", late)
        remove_unread(first.folder, Prepared.open(str(data)).manifest)
        assert Prepared.open(str(data), first.digest).index.equals(first.index)


def test_a_kill_while_it_removes_leaves_no_manifest_of_what_is_not_there(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passed for a storage that is away, which a worker waits for."""
    first = replaced(data)
    removed: list[str] = []
    monkeypatch.setattr(Folder, "delete", lambda _, name: removed.append(name))
    remove_unread(first.folder, Prepared.open(str(data)).manifest)
    assert removed == [first.manifest.earlier_name, first.manifest.index]


def test_what_a_later_raymed_reads_stays_though_its_manifest_cannot_be_read(data: Path) -> None:
    first = replaced(data)
    later = asdict(first.manifest) | {"format": 99}
    (data / first.manifest.earlier_name).write_text(json.dumps(later), "utf-8")
    with reading(str(data), first.digest):
        remove_unread(first.folder, Prepared.open(str(data)).manifest)
        assert (data / first.manifest.index).exists() and (data / first.manifest.earlier_name).exists()
