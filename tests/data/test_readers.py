"""Who reads prepared data is known while it lives, and no longer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from raymed import clock
from raymed.data.prepared import MANIFEST
from raymed.data.readers import READERS, read_digests, reading
from raymed.storage import heartbeat
from raymed.storage.folder import Folder
from raymed.storage.heartbeat import BACK, BEAT, EXPIRES

ELSEWHERE = {"host": "elsewhere", "machine": "elsewhere 1", "pid": 1, "started": "1"}
HERE_BEFORE = {"pid": 2**22 + 1, "started": "1"}  # no process has such a number


@pytest.fixture(autouse=True)
def _second_look_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymed.data.readers.BACK", 0.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / MANIFEST).touch()
    return folder


def notes(data: Path) -> list[Path]:
    return sorted((data / READERS).glob("*.json"))


def read(data: Path) -> set[str]:
    return read_digests(Folder.at(data))


def test_data_are_read_until_their_reader_ends_and_a_search_within_a_search_is_one_reader(data: Path) -> None:
    with reading(str(data), "a"), reading(str(data), "a"), reading(str(data), "b"):
        assert read(data) == {"a", "b"}
        assert len(notes(data)) == 2
    assert read(data) == set()
    assert not notes(data)


def test_a_reader_that_was_killed_keeps_nothing_and_one_on_another_machine_for_a_minute(data: Path) -> None:
    folder = Folder.at(data).child(READERS)
    folder.write("killed.json", heartbeat.content(**HERE_BEFORE, digest="a"))
    folder.write("theirs.json", json.dumps(ELSEWHERE | {"digest": "b"}).encode())
    folder.write("damaged.json", b"[")
    assert read(data) == {"b", ""}, "of a damaged note it is not known what is read"
    assert [path.name for path in notes(data)] == ["damaged.json", "theirs.json"]
    for path in notes(data):
        os.utime(path, (time.time() - EXPIRES - 1,) * 2)
    assert read(data) == set()
    assert not notes(data)


def test_a_reader_that_is_back_from_standing_still_keeps_its_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was suspended for a few minutes lost its data to whoever prepared others in the seconds after."""
    Folder.at(data).child(READERS).write("theirs.json", json.dumps(ELSEWHERE | {"digest": "b"}).encode())
    (note,) = notes(data)
    os.utime(note, (1, 1))
    looks = list[float]()

    def back(seconds: float) -> None:
        looks.append(seconds)
        os.utime(note)

    monkeypatch.setattr(clock, "sleep", back)
    monkeypatch.setattr("raymed.data.readers.BACK", BACK)
    assert read(data) == {"b"}
    assert notes(data) == [note]
    assert looks == [BACK] and BACK > BEAT
    assert read(data) == {"b"}
    assert len(looks) == 1, "where every note is young, nobody waits"


def test_another_account_that_may_neither_read_nor_remove_notes_nor_ask_the_time_keeps_everything(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search in a container runs as root, and who prepares does not: preparing ended after it had published."""
    folder = Folder.at(data).child(READERS)
    folder.write("killed.json", heartbeat.content(**HERE_BEFORE, digest="a"))
    folder.write("theirs.json", json.dumps(ELSEWHERE | {"digest": "b"}).encode())
    folder.write("unreadable.json", b"{}")
    read_real = heartbeat.read

    def refused(*_: object) -> NoReturn:
        raise PermissionError("not yours")

    def read_some(folder: Folder, file: str) -> dict[str, Any]:
        return refused() if file == "unreadable.json" else read_real(folder, file)

    monkeypatch.setattr(heartbeat, "read", read_some)
    monkeypatch.setattr(Folder, "delete", refused)
    monkeypatch.setattr(Folder, "write", refused)
    for path in notes(data):
        os.utime(path, (time.time() - EXPIRES - 1,) * 2)
    assert read(data) == {"b", ""}


def test_a_note_is_renewed_and_written_nowhere_while_its_storage_is_away(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.01)
    mounted = tmp_path / "mounted"
    with reading(str(data), "a"):
        (note,) = notes(data)
        os.utime(note, (1, 1))
        wait_for(lambda: note.stat().st_mtime > 1)
        data.rename(mounted)
        data.mkdir()  # the mount point
        time.sleep(0.1)  # some beats
        data.rmdir()
        mounted.rename(data)
        os.utime(note, (1, 1))
        wait_for(lambda: note.stat().st_mtime > 1)
    assert not notes(data)


def test_who_cannot_leave_a_note_reads_all_the_same_and_says_what_that_means(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data / READERS).write_text("a file where the folder would be")
    with reading(str(data), "a"):
        pass
    assert "prepare nothing into it until this job has ended" in caplog.text


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_data_that_go_away_as_they_are_to_be_read_are_no_error_yet(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The search ended with the file system's own words, where every later one waits."""

    def gone(folder: Folder, name: str = "") -> bool:
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(Folder, "exists", gone)
    with reading(str(data), "a"):
        pass
    assert "Transport endpoint is not connected" in caplog.text
