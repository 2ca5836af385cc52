"""Rows about a search whose storage or raylet goes away, and one that is told to stop while it judges."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from conftest import write_prepared
from object_store import object_store
from small_search import small_search
from storage_rows import _finished, _job

from raymed.storage.folder import Folder
from raymed.training.checkpoint import sealed_names

SCRIPT = Path(__file__).with_name("small_search.py")
TRIALS, FOUND = 3, 60.0  # of a search; seconds within which an absence must be said
Losses = list[tuple[object, ...]]


def search_full(tries: int, seed: int, folder: Path) -> str:
    """A search's storage fills up while its second trial trains; then there is room, and the same command. Needs root."""
    if os.geteuid() != 0:
        return "skipped: mounting a small disk needs root"
    whole = _prepared(folder)
    for attempt in range(tries):
        disk = folder / f"full-{attempt}"
        with _mounted(disk, "-t", "tmpfs", "-o", "size=16m", "raymed-chaos"):
            process = _begun(folder, disk)
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(2**12))
            code, said = process.wait(300), _said(folder, disk)
            assert code and "No space left" in said and "Free space" in said, said[-2000:]
            states = _read(folder, disk)
            assert [state for _, state, _ in states[1:]] == ["RUNNING"], f"none fails, and no other begins: {states}"
            (disk / "filler").unlink()
            (folder / "hold").unlink(missing_ok=True)
            assert _start(folder, disk).wait(600) == 0, _said(folder, disk)[-2000:]
            assert _read(folder, disk) == whole
    return f"{tries} of {tries} stopped with their trials as they were, and went on to the same trials, losses and decisions"


def storage_away(tries: int, seed: int, folder: Path) -> str:
    """A search's storage is unmounted for 30 s, for ever, and read-only, and its server is stopped, each `tries` times.

    Needs root. The server is one of objects: kernels of containers have none of NFS, and a stopped one answers as little.
    """
    if os.geteuid() != 0:
        return "skipped: mounting needs root"
    whole, slowest = _prepared(folder), 0.0
    for attempt in range(tries):
        for harm in ("for 30 s", "for ever", "read-only"):
            files, disk = folder / f"files-{attempt}-{harm[-4:].strip()}", folder / f"disk-{attempt}-{harm[-4:].strip()}"
            files.mkdir()
            bound = ("--bind", str(files))
            with _mounted(disk, *bound):
                process, started = _begun(folder, disk, minutes=0.5 if harm == "for ever" else 10), time.monotonic()
                if harm == "read-only":
                    _run("mount", "-o", "remount,bind,ro", disk)
                    assert process.wait(300), "it ended as if nothing had happened"
                    _run("mount", "-o", "remount,bind,rw", disk)
                    assert "Read-only file system" in _said(folder, disk), _said(folder, disk)[-2000:]
                else:
                    _run("umount", "-l", disk)
                    _wait(lambda disk=disk: "storage away since" in _said(folder, disk), FOUND)  # type: ignore[misc]
                    slowest = max(slowest, time.monotonic() - started)
                    if harm == "for ever":
                        assert process.wait(180) == 1, _said(folder, disk)[-2000:]
                        assert "Once it is back: python" in _said(folder, disk), _said(folder, disk)[-2000:]
                    else:
                        time.sleep(30)
                    assert not list(disk.iterdir()), "something was written below the mount point"
                    _run("mount", *bound, disk)
                (folder / "hold").unlink(missing_ok=True)
                if harm != "for 30 s":
                    process = _start(folder, disk)
                assert process.wait(600) == 0, _said(folder, disk)[-2000:]
                assert _read(folder, disk) == whole, harm
                assert "Traceback" not in _said(folder, disk), "a library's traceback"
        slowest = max(slowest, _server_stopped(folder, attempt, whole))
    return f"{4 * tries} of {4 * tries} went on to the same trials and losses; an absence was said within {slowest:.0f} s"


def _server_stopped(folder: Path, attempt: int, whole: Losses) -> float:
    """A search whose storage's server says nothing for a while; seconds until that was said."""
    with object_store() as bucket:
        storage = f"{bucket}/{folder.name}-{attempt}"
        process, started = _begun(folder, storage), time.monotonic()
        bucket.server.send_signal(signal.SIGSTOP)
        _wait(lambda: "storage away since" in _said(folder, storage), 2 * FOUND)
        took = time.monotonic() - started
        bucket.server.send_signal(signal.SIGCONT)
        (folder / "hold").unlink(missing_ok=True)
        assert process.wait(600) == 0, _said(folder, storage)[-2000:]
        assert "(it does not answer)" in _said(folder, storage) and "the storage is back after" in _said(folder, storage)
        assert "Traceback" not in _said(folder, storage), "a library's traceback"
        assert _read(folder, storage) == whole
        shutil.rmtree(small_search(folder, "search", TRIALS, storage=storage).study_path.parent)
    return took


def raylet_lost(tries: int, seed: int, folder: Path) -> str:
    """The raylet of a search's own Ray is killed while its second trial trains; then the same command."""
    whole, slowest = _prepared(folder), 0.0
    for attempt in range(tries):
        storage = folder / f"lost-{attempt}"
        process = _begun(folder, storage)
        (raylet,) = (each for each in psutil.Process(process.pid).children(recursive=True) if each.name() == "raylet")
        started = time.monotonic()
        raylet.kill()
        assert process.wait(180) == 1, _said(folder, storage)[-2000:]
        slowest = max(slowest, time.monotonic() - started)
        said = _said(folder, storage)
        at_once = "ended at once" in said  # by Ray's core
        assert (at_once or "Ray ended in the middle of the search" in said) and f"python {SCRIPT}" in said, said[-2000:]
        assert "Traceback" not in said and "owner has died" not in said, said[-4000:]
        search = small_search(folder, "search", TRIALS, storage=storage)
        tracker = search.open_tracker()
        running = [run for run in tracker.client.search_runs([tracker.experiment_id]) if run.info.status == "RUNNING"]
        assert at_once or not running, "MLflow shows what nobody runs"
        (folder / "hold").unlink()
        assert _start(folder, storage).wait(600) == 0, _said(folder, storage)[-2000:]
        assert _read(folder, storage) == whole
    return f"{tries} of {tries} said what happened and how to go on within {slowest:.0f} s, and went on to the same losses"


def judging_told(tries: int, seed: int, folder: Path) -> str:
    """SIGTERM, and SIGINT, while a search's winner is judged; then the same command."""
    slowest = 0.0
    for attempt in range(tries):
        name = f"search-{attempt}"
        words = ["jobs/tune_lung.py", "--phantom.patients", "48", "--phantom.size", "64", "--phantom-size", "56"]
        words += ["--trials", "1", "--max-epochs", "1", "--storage", str(folder), "--name", name, "--json"]
        job = _job(words, folder / f"{name}.log")
        record = folder / name / "study.journal"
        _wait(lambda job=job, record=record: job.poll() is not None or _holds(record, b'"judging"'), 900)  # type: ignore[misc]
        job.send_signal((signal.SIGTERM, signal.SIGINT)[attempt % 2])
        started = time.monotonic()
        code, said = job.wait(120), (folder / f"{name}.log").read_text()
        slowest = max(slowest, time.monotonic() - started)
        assert code == 130 and "To go on from the last checkpoint: python" in said, said[-2000:]
        assert "Traceback" not in said and "terminate called" not in said, said[-2000:]
        assert _finished(words, folder / f"{name}-again.log")["version"]
    assert slowest < 40, f"{slowest:.0f} s"
    return f"{tries} of {tries} left after {slowest:.1f} s at most, said how to go on, and were judged by the same command"


def _prepared(folder: Path) -> Losses:
    """Data in `folder`, and what an undisturbed search over them finds."""
    write_prepared(folder / "data")
    assert _start(folder, folder / "whole").wait(600) == 0, _said(folder, folder / "whole")[-2000:]
    return _read(folder, folder / "whole")


def _begun(folder: Path, storage: Path | str, minutes: float = 10.0) -> subprocess.Popen[bytes]:
    """A search whose second trial is under way, slowly."""
    (folder / "hold").touch()
    process = _start(folder, storage, minutes)
    second = Folder.at(storage).child("search/trials/trial-0001")
    _wait(lambda: process.poll() is not None or bool(sealed_names(second)), 300)
    assert process.poll() is None, _said(folder, storage)[-2000:]
    return process


def _start(folder: Path, storage: Path | str, minutes: float = 10.0) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(folder), "search", str(TRIALS), str(storage), str(minutes)]
    with _log(folder, storage).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _log(folder: Path, storage: Path | str) -> Path:
    return folder / f"{Path(storage).name}.log"


def _said(folder: Path, storage: Path | str) -> str:
    return _log(folder, storage).read_text()


def _read(folder: Path, storage: Path | str) -> Losses:
    """Settings, end and epochs of each trial."""
    study = small_search(folder, "search", TRIALS, storage=storage).open_study()
    trials = study.trials
    study.close()  # or it would copy its record into a storage that is away by then
    return [(trial.params, trial.state.name, trial.intermediate_values) for trial in trials]


def _holds(file: Path, text: bytes) -> bool:
    return file.is_file() and text in file.read_bytes()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.1)


@contextmanager
def _mounted(at: Path, *words: str) -> Iterator[None]:
    at.mkdir()
    _run("mount", *words, at)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=False, capture_output=True)


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True)
