"""Who reads prepared data is known while it lives, and no longer."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest

from raymed.data import readers
from raymed.data.readers import READERS, read_digests, reading
from raymed.storage.folder import Folder
from raymed.storage.lease import EXPIRES

ELSEWHERE = {"host": "elsewhere", "machine": "elsewhere 1", "pid": 1, "started": "1"}
HERE_BEFORE = {"pid": 2**22 + 1, "started": "1"}  # no process has such a number


def notes(data: Path) -> list[Path]:
    return sorted((data / READERS).glob("*.json"))


def read(data: Path) -> set[str]:
    return read_digests(Folder.at(data))


def test_data_are_read_until_their_reader_ends_and_a_search_within_a_search_is_one_reader(tmp_path: Path) -> None:
    with reading(str(tmp_path), "a"), reading(str(tmp_path), "a"), reading(str(tmp_path), "b"):
        assert read(tmp_path) == {"a", "b"}
        assert len(notes(tmp_path)) == 2
    assert read(tmp_path) == set()
    assert not notes(tmp_path)


def test_a_reader_that_was_killed_keeps_nothing_and_one_on_another_machine_for_a_minute(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path).child(READERS)
    folder.write("killed.json", json.dumps(readers.holder.myself() | HERE_BEFORE | {"digest": "a"}).encode())
    folder.write("theirs.json", json.dumps(ELSEWHERE | {"digest": "b"}).encode())
    folder.write("damaged.json", b"[")
    assert "b" in read(tmp_path)
    assert "a" not in read(tmp_path)
    assert [path.name for path in notes(tmp_path)] == ["damaged.json", "theirs.json"]
    for path in notes(tmp_path):
        os.utime(path, (time.time() - EXPIRES - 1,) * 2)
    assert read(tmp_path) == set()
    assert not notes(tmp_path)


def test_a_note_is_renewed_and_written_nowhere_while_its_storage_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BEAT", 0.01)
    data, mounted = tmp_path / "data", tmp_path / "mounted"
    data.mkdir()
    with reading(str(data), "a"):
        (note,) = notes(data)
        os.utime(note, (1, 1))
        wait_for(lambda: note.stat().st_mtime > 1)
        data.rename(mounted)
        time.sleep(0.1)  # some beats
        assert not data.exists()
        mounted.rename(data)
        os.utime(note, (1, 1))
        wait_for(lambda: note.stat().st_mtime > 1)
    assert not notes(data)


def test_who_cannot_leave_a_note_reads_all_the_same_and_says_what_that_means(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / READERS).write_text("a file where the folder would be")
    with caplog.at_level(logging.INFO, "raymed"), reading(str(tmp_path), "a"):
        pass
    assert "until this has ended: that it is read cannot be noted" in caplog.text


def wait_for(condition: object) -> None:
    until = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.005)
