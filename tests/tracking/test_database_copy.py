"""The copy of MLflow's database: what changed is sent, a copy that is cut off leaves the one before, damage is found."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.tracking.database_copy import LIST, PART_BYTES, PARTS, WHOLE, DatabaseCopy


@pytest.fixture
def database() -> bytearray:
    return bytearray(random.Random(0).randbytes(20 * PART_BYTES + 100))


def test_only_what_changed_is_sent_and_what_nobody_names_goes(database: bytearray, tmp_path: Path) -> None:
    """The whole file was sent every 30 seconds, and a bucket kept each for a month."""
    copy = DatabaseCopy(Folder.at(tmp_path))
    assert not copy.exists()
    assert copy.write(bytes(database)) == len(database)
    database[3 * PART_BYTES] ^= 1
    database += b"a metric"
    assert copy.write(bytes(database)) == PART_BYTES + 108
    assert copy.read() == bytes(database)
    assert len(list((tmp_path / PARTS).iterdir())) == 21
    fresh = DatabaseCopy(Folder.at(tmp_path))  # of the next head
    assert fresh.write(bytes(database)) == 0 and fresh.read() == bytes(database)


def test_a_copy_that_is_cut_off_leaves_the_one_before_it(
    database: bytearray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, before, usual = DatabaseCopy(Folder.at(tmp_path)), bytes(database), Folder.write
    copy.write(before)
    database[0] ^= 1

    def away(self: Folder, name: str, content: bytes) -> None:
        if name == LIST:
            raise UserError("the storage is away")
        usual(self, name, content)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="away"):
        patched.setattr(Folder, "write", away)
        copy.write(bytes(database))
    assert copy.read() == before
    copy.write(bytes(database))
    assert copy.read() == bytes(database) and len(list((tmp_path / PARTS).iterdir())) == 21


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b"x"), lambda path: path.parent.rename("gone")]
)
def test_a_damaged_copy_is_no_database(
    damage: Any, database: bytearray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = DatabaseCopy(Folder.at(tmp_path))
    copy.write(bytes(database))
    damage(next((tmp_path / PARTS).iterdir()))
    with pytest.raises(UserError, match="is damaged"):
        copy.read()


def test_a_copy_of_an_earlier_raymed_is_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / WHOLE).write_bytes(b"in one piece")
    copy = DatabaseCopy(Folder.at(tmp_path))
    assert copy.exists() and copy.read() == b"in one piece"
    copy.write(b"in parts")
    assert copy.read() == b"in parts"
