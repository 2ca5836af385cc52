"""The search's record survives what happens to its file, and of two that write it one ends."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.storage import disk
from raymed.storage.folder import Folder
from raymed.tuning.journal import COPY, Journal

ENTRIES = [{"op": 0, "number": number} for number in range(5)]


def entries(journal: Journal) -> list[dict]:
    return list(journal.read_logs(0))


@pytest.fixture
def path(tmp_path) -> Path:
    journal = Journal(tmp_path / "study.journal", Folder.at(tmp_path / "storage"))
    for entry in ENTRIES:
        journal.append_logs([entry])
    journal.close()
    return tmp_path / "study.journal"


def reopened(path: Path, storage_minutes: float = 0) -> Journal:
    return Journal(path, Folder.at(path.parent / "storage"), storage_minutes=storage_minutes)


def test_an_entry_cut_off_while_it_was_written_is_left_out_and_writing_goes_on(path, caplog):
    path.write_bytes(path.read_bytes() + b'{"op": 0, "num')
    journal = reopened(path)
    assert entries(journal) == ENTRIES
    assert str(path) in caplog.text, "a line names the file"
    journal.append_logs([{"op": 9}])
    assert entries(reopened(path)) == [*ENTRIES, {"op": 9}]


def test_an_entry_that_neither_file_holds_whole_is_lost_alone(path):
    content = path.read_bytes()[:-5]
    path.write_bytes(content)
    (path.parent / "storage" / COPY).write_bytes(content)
    assert entries(reopened(path)) == ENTRIES[:-1]


@pytest.mark.parametrize("harm", ["removed", "emptied", "cut", "overwritten"])
def test_a_damaged_record_is_replaced_by_its_copy(path, harm, caplog):
    content = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes({"emptied": b"", "cut": content[: len(content) // 2], "overwritten": b"\0" * len(content)}[harm])
    assert entries(reopened(path)) == ENTRIES
    assert str(path) in caplog.text


@pytest.mark.parametrize("line", [b"null", b"{}", b'{"op_code":99,"worker_id":"w"}', b"[" * 100_000, b"\xff\xfe"])
def test_a_line_that_is_no_entry_of_ours_is_not_believed(path, line, caplog):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], line + b"\n", *lines[4:]]))
    assert entries(reopened(path)) == ENTRIES
    assert "line 4" in caplog.text and "its copy" in caplog.text


@pytest.mark.parametrize("change", ["digit", "left out", "exchanged"])
def test_a_line_that_was_changed_left_out_or_exchanged_is_not_believed(path, change, caplog):
    """Each line is an entry that could have been written."""
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "digit":
        lines[3] = lines[3].replace(b'"number":2', b'"number":9')
    elif change == "left out":
        del lines[3]
    else:
        lines[2], lines[3] = lines[3], lines[2]
    path.write_bytes(b"".join(lines))
    assert entries(reopened(path)) == ENTRIES
    assert "checksum" in caplog.text and "its copy" in caplog.text
    assert len(list(path.parent.glob("*.aside"))) == 1, "what was not believed is kept"


def test_without_a_copy_what_comes_before_the_damage_is_taken_and_the_line_says_so(path, caplog):
    (path.parent / "storage" / COPY).unlink()
    path.write_bytes(path.read_bytes().replace(b'"number":3', b'"number":8'))
    assert entries(reopened(path)) == ENTRIES[:3]
    assert "line 5" in caplog.text and "3 entries" in caplog.text


def test_a_record_of_before_checksums_is_read_and_goes_on_with_them(tmp_path):
    old = [{"op_code": 0, "worker_id": "w", "study_name": "search"}, {"op_code": 2, "worker_id": "w", "user_attr": {"a": 1}}]
    content = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in old)
    for place in (tmp_path / "study.journal", tmp_path / "storage" / COPY):
        place.parent.mkdir(exist_ok=True)
        place.write_text(content)
    (tmp_path / "storage" / COPY).write_text(content[: content.index("\n") + 1])  # behind, as after a kill
    journal = reopened(tmp_path / "study.journal")
    assert entries(journal) == old
    journal.append_logs([{"op_code": 9}])
    assert entries(reopened(tmp_path / "study.journal")) == [*old, {"op_code": 9}]


def test_a_damaged_record_of_before_checksums_ends_before_the_damage(tmp_path):
    good = '{"op_code":0,"worker_id":"w"}\n'
    (tmp_path / "study.journal").write_text(good + '{"op_code":77,"worker_id":"w"}\n' + good)
    assert len(entries(reopened(tmp_path / "study.journal"))) == 1


def test_a_record_that_went_another_way_gives_way_to_the_copy_that_every_head_sees(path, caplog):
    """This head was taken for dead; the next one went on from the copy."""
    (path.parent / "other").mkdir()
    other = Journal(path.parent / "other" / "study.journal", Folder.at(path.parent / "storage"))
    other.append_logs([{"op": "theirs"}])
    other.close()
    lines = path.read_bytes()
    mine = Journal(path, Folder.at(path.parent / "nowhere"))
    mine.append_logs([{"op": "mine"}])
    mine.append_logs([{"op": "mine"}])
    mine.close()
    assert entries(reopened(path)) == [*ENTRIES, {"op": "theirs"}]
    assert "not that of the search in the storage" in caplog.text
    assert lines in next(path.parent.glob("*.aside")).read_bytes()


def test_what_is_appended_together_is_written_and_copied_at_once(tmp_path):
    writes = []

    class Counted(Folder):
        def write(self, name, content):
            writes.append(len(content.splitlines()))
            super().write(name, content)

    folder = Folder.at(tmp_path / "storage")
    path = tmp_path / "study.journal"
    journal = Journal(path, Counted(folder.filesystem, folder.path, folder.uri))
    before = path.read_bytes()
    with journal.together():
        for entry in ENTRIES:
            journal.append_logs([entry])
            assert path.read_bytes() == before
            assert entries(journal)[-1] == entry, "who reads sees it"
    assert len(path.read_bytes().splitlines()) == 1 + len(ENTRIES)
    journal.close()
    assert writes == [1 + len(ENTRIES)]


def test_a_storage_that_is_away_stops_nothing_and_gets_the_newest_copy_when_it_is_back(tmp_path, caplog):
    class Away(Folder):
        is_away = True

        def write(self, name, content):
            if Away.is_away:
                raise OSError("the storage is away")
            super().write(name, content)

    folder = Folder.at(tmp_path / "storage")
    journal = Journal(tmp_path / "study.journal", Away(folder.filesystem, folder.path, folder.uri))
    before = time.monotonic()
    for entry in ENTRIES:  # the storage stays away until all are written: who waited for it here would wait for ever
        journal.append_logs([entry])
    assert not folder.exists(COPY)
    while "cannot be copied" not in caplog.text and time.monotonic() - before < 60:
        time.sleep(0.01)  # a busy machine may not have tried yet
    Away.is_away = False
    journal.close()
    assert folder.read(COPY) == (tmp_path / "study.journal").read_bytes()
    assert caplog.text.count("cannot be copied") == 1


def test_the_copy_is_not_written_below_a_mount_point(path):
    storage = path.parent / "storage"
    journal = reopened(path)
    storage.rename(path.parent / "elsewhere")
    journal.append_logs([{"op": 5}])
    time.sleep(0.2)
    assert not storage.exists()
    (path.parent / "elsewhere").rename(storage)
    journal.close()
    assert (storage / COPY).read_bytes() == path.read_bytes()


def test_a_write_that_found_no_space_harms_nothing_that_is_there(path, monkeypatch):
    """Half of the line is on the disk; the next process, or this one, writes behind the last whole one."""
    journal = reopened(path)
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="Free space"):
        journal.append_logs([{"op": 5}])
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-4])
    assert entries(reopened(path)) == ENTRIES


def test_a_storage_that_is_away_for_a_moment_is_not_taken_for_one_without_a_record(path, monkeypatch):
    """A second was enough: an empty record replaced the search's, and its copy."""
    exists, looks = Folder.exists, []

    def blink(folder, name=""):
        looks.append(name)
        return exists(folder, name) and (not name or looks.count(name) > 1)

    monkeypatch.setattr(Folder, "exists", blink)
    assert entries(reopened(path)) == ENTRIES
    assert {COPY, path.name} <= set(looks)


def test_a_record_whose_writer_was_killed_before_its_name_was_durable_is_made_so_by_the_next(path, monkeypatch):
    kept = []
    monkeypatch.setattr("raymed.storage.disk.keep", kept.append)
    reopened(path)
    assert path.parent in kept


@pytest.fixture
def half(monkeypatch):
    """The storage goes away in the midst of a write, and is back at once; what is called meanwhile is put here."""
    meanwhile, append = [], disk.append

    def goes_away(path, content, at):
        monkeypatch.setattr("raymed.storage.disk.append", append)
        append(path, content[:-4], at)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("raymed.storage.disk.append", goes_away)
    monkeypatch.setattr("raymed.clock.sleep", lambda duration: [each() for each in meanwhile])
    return meanwhile


def test_what_a_failed_write_left_is_cut_off(path, half):
    journal = reopened(path, storage_minutes=1)
    journal.append_logs([{"op": 5}])
    journal.close()
    assert entries(reopened(path)) == [*ENTRIES, {"op": 5}]


def test_who_was_cut_off_in_the_midst_of_a_write_cuts_nothing_of_a_successor_off(path, half):
    """A process that stood still after a failed write was back, and cut its successor's entries off."""
    cut_off = reopened(path, storage_minutes=1)

    def take_over():
        successor = reopened(path)
        successor.append_logs([{"op": 6}])
        successor.close()

    half.append(take_over)
    with pytest.raises(UserError, match="another process has written"):
        cut_off.append_logs([{"op": 5}])
    assert entries(reopened(path)) == [*ENTRIES, {"op": 6}]


def test_an_entry_whose_write_was_given_up_comes_before_the_next(path, monkeypatch):
    """The next one followed on an entry that was not there, and passed for damage."""
    journal = reopened(path)
    with monkeypatch.context() as patch:
        patch.setattr("raymed.storage.disk.append", lambda *write: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(UserError, match="Free space"):
            journal.append_logs([{"op": 5}])
    assert entries(reopened(path)) == ENTRIES
    journal.append_logs([{"op": 6}])
    journal.close()
    assert entries(reopened(path)) == [*ENTRIES, {"op": 5}, {"op": 6}]


def test_a_write_that_waits_for_its_storage_says_so_once(path, monkeypatch, caplog):
    """The search stands still meanwhile, for twenty minutes of silence."""
    append, now = disk.append, [0.0]
    until = iter([*range(30), None])

    def away(*write):
        if next(until) is not None:
            raise OSError(errno.EIO, "Input/output error")
        append(*write)

    monkeypatch.setattr("raymed.storage.disk.append", away)
    monkeypatch.setattr("raymed.clock.seconds", lambda: now[0])
    monkeypatch.setattr("raymed.clock.sleep", lambda duration: now.append(now.pop() + duration))
    journal = reopened(path, storage_minutes=5)
    journal.append_logs([{"op": 5}])
    monkeypatch.undo()
    journal.close()
    assert caplog.messages == [
        f"{path} cannot be written ([Errno 5] Input/output error): the search waits for it, 5 minutes at most"
    ]


def test_what_is_not_written_yet_is_not_told_by_another_thread(path, monkeypatch):
    """A run acted on a decision that a power cut took."""
    journal, looks = reopened(path), []
    write = journal._write

    def look():
        with journal.at_rest():
            looks.append((entries(journal)[-1], entries(reopened(path))[-1]))

    def slow():
        other.start()
        other.join(0.3)
        write()

    other = threading.Thread(target=look)
    monkeypatch.setattr(journal, "_write", slow)
    with journal.together():
        journal.append_logs([{"op": 5}])
    other.join()
    journal.close()
    assert looks == [({"op": 5}, {"op": 5})]


def test_a_damaged_copy_is_not_used(path):
    (path.parent / "storage" / COPY).write_bytes(b"\0" * 1000)
    assert entries(reopened(path)) == ENTRIES


def test_a_second_writer_of_one_file_is_found_out(path):
    first, second = reopened(path), reopened(path)
    first.append_logs([{"op": 5}])
    with pytest.raises(UserError, match="another process has written"):
        second.append_logs([{"op": 6}])
    first.append_logs([{"op": 7}])
    first.close()
    assert entries(reopened(path)) == [*ENTRIES, {"op": 5}, {"op": 7}]
