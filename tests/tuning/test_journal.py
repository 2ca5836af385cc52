"""The search's record survives what happens to its file, and no two processes write it."""

import multiprocessing
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.storage import Folder
from raymed.tuning.journal import COPY, Journal, alone

ENTRIES = [{"op": 0, "number": number} for number in range(5)]


def entries(journal: Journal) -> list[dict]:
    return list(journal.read_logs(0))


@pytest.fixture
def path(tmp_path) -> Path:
    journal = Journal(tmp_path / "study.journal", Folder.at(tmp_path / "storage"))
    for entry in ENTRIES:
        journal.append_logs([entry])
    return tmp_path / "study.journal"


def reopened(path: Path) -> Journal:
    return Journal(path, Folder.at(path.parent / "storage"))


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


def test_a_damaged_copy_is_not_used(path):
    (path.parent / "storage" / COPY).write_bytes(b"\0" * 1000)
    assert entries(reopened(path)) == ENTRIES


def hold(path: Path, held, release) -> None:
    with alone(path):
        held.set()
        release.wait()


def test_a_second_process_is_refused_and_a_killed_one_lets_go(path):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(path, held, release))
    other.start()
    assert held.wait(120)
    with pytest.raises(UserError, match="another process"), alone(path):
        pass
    other.kill()
    other.join()
    Path(f"{path}.lock").symlink_to(path)  # Optuna's lock, which the killed process held
    with alone(path):
        reopened(path).append_logs([{"op": 1}])
