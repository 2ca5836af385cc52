"""A storage that goes away in the middle of a search is said, waited for, and left in the end."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from raymed import clock
from raymed.errors import RunError
from raymed.storage.folder import Folder
from raymed.tuning import result, storage_watch
from raymed.tuning.journal import Journal
from raymed.tuning.storage_watch import StorageWatch


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    for name, seconds in (("PERIOD", 0.02), ("ANSWER", 0.2), ("LEAVING", 60.0), ("PAUSE", 0.02)):
        monkeypatch.setattr(storage_watch, name, seconds)


def wait_until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_storage_that_comes_back_in_time_is_said_once_each_way(tmp_path, caplog):
    storage = tmp_path / "storage"
    storage.mkdir()
    with StorageWatch(Folder.at(storage), 20, "the command", pytest.fail) as watch:
        assert not watch.absence
        storage.rename(tmp_path / "elsewhere")
        wait_until(lambda: watch.is_away)
        assert f"({storage}: No such file or directory)" in watch.absence and watch.absence.endswith(": the command")
        time.sleep(0.1)
        (tmp_path / "elsewhere").rename(storage)
        wait_until(lambda: not watch.is_away)
    away, back = (record.getMessage() for record in caplog.records)
    assert away.startswith("storage away since ")
    assert f"({storage}: No such file or directory), waiting until " in away
    assert back.startswith("the storage is back after ")
    assert not list(tmp_path.glob("storage/*"))


def test_a_worker_that_alone_lacks_the_storage_is_heard(tmp_path, caplog):
    """Its machine lacks the mount: nothing was said for 20 minutes."""
    words = ["worker 1 on b does not see the folder"]
    with StorageWatch(Folder.at(tmp_path), 20, "the command", pytest.fail, lambda: words.pop() if words else ""):
        wait_until(lambda: caplog.records)
    assert [record.getMessage() for record in caplog.records] == ["worker 1 on b does not see the folder"]


def test_one_that_stays_away_ends_the_job_with_what_to_do(tmp_path):
    stopped: list[str] = []
    with StorageWatch(Folder.at(tmp_path / "gone"), 0.001, "python job.py", lambda: stopped.append("")) as watch:
        wait_until(lambda: watch.gave_up)
        wait_until(lambda: stopped)
    assert "gone has been away for 0.001 minutes" in watch.gave_up
    assert watch.gave_up.endswith("Once it is back: python job.py")


def test_what_fails_while_the_storage_is_away_is_done_again_once_it_is_back(tmp_path, caplog):
    storage, elsewhere, tries = tmp_path / "storage", tmp_path / "elsewhere", []

    def read() -> str:
        tries.append("")
        return (storage / "file").read_text()

    elsewhere.mkdir()
    (elsewhere / "file").write_text("held")
    with StorageWatch(Folder.at(storage), 20, "the command", pytest.fail) as watch:
        back = threading.Thread(target=lambda: (wait_until(lambda: watch.is_away and tries), elsewhere.rename(storage)))
        back.start()
        assert watch.outlast(read) == "held" and len(tries) >= 2
        with pytest.raises(ZeroDivisionError):
            watch.outlast(lambda: 1 / 0)
    back.join()


@pytest.mark.parametrize("heeds", [signal.default_int_handler, signal.SIG_IGN], ids=["in front", "in the background"])
def test_judging_says_that_the_storage_is_away_and_leaves_with_how_to_go_on(tmp_path, monkeypatch, caplog, heeds):
    """It ended with a library's FileNotFoundError. A shell's jobs in the background heed no Ctrl-C."""
    before = signal.signal(signal.SIGINT, heeds)
    template = SimpleNamespace(folder=Folder.at(tmp_path / "gone"), train=SimpleNamespace(storage_minutes=0.001))
    best, tracker = SimpleNamespace(number=0), SimpleNamespace(find=lambda key: "run")
    search = SimpleNamespace(
        template=template,
        name="search",
        of_generation=lambda generation: search,
        reopen_tracker=lambda: tracker,
        trial_key=lambda trial: "search/trial-0",
    )
    monkeypatch.setattr(result, "best_trial", lambda search, study: best)
    monkeypatch.setattr(result, "_judge", lambda *given: (tmp_path / "gone" / "checkpoint").read_bytes())
    try:
        with pytest.raises(RunError, match=r"gone has been away for 0\.001 minutes .* Once it is back: python "):
            result.conclude_search(search, SimpleNamespace(generation="", trials=[best]))
    finally:
        signal.signal(signal.SIGINT, before)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("storage away since ")


@pytest.mark.slow
def test_a_server_that_says_nothing_is_away_and_a_job_that_hangs_on_it_ends_all_the_same(tmp_path):
    """As a stopped NFS server: a read never returns, and no signal reaches the thread that waits for it."""
    script = """
import signal, sys, threading, time
from types import SimpleNamespace
from raymed.tuning import storage_watch
storage_watch.PERIOD, storage_watch.ANSWER, storage_watch.LEAVING = 0.02, 0.05, 0.2
def hang():
    threading.Event().wait()
folder = SimpleNamespace(uri="nfs", exists=hang, is_local=True)
with storage_watch.StorageWatch(folder, 0.001, "python job.py", lambda: None):
    threading.Event().wait()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "nfs has been away for 0.001 minutes (it does not answer)" in done.stderr
    assert done.stderr.endswith("Once it is back: python job.py\n")


def test_the_record_waits_for_its_storage_and_loses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "search"
    journal = Journal(folder / "study.journal", Folder.at(folder), storage_minutes=1)
    folder.rename(tmp_path / "away")
    monkeypatch.setattr(clock, "sleep", lambda seconds: shutil.move(tmp_path / "away", folder))
    journal.append_logs([{"number": 1}])
    journal.close()
    assert list(Journal(folder / "study.journal", Folder.at(folder)).read_logs(0)) == [{"number": 1}]
    assert not Path(tmp_path / "away").exists()
