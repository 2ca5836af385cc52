"""A real MLflow server: it listens on loopback only, and its database comes back on another machine."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from mlflow import MlflowClient
from ports import free_port

from raymed.storage.folder import Folder
from raymed.tracking.server import COPY, _keep_copy, _Server, answers, end_serving, restore

JOB = str(Path(__file__).parents[2] / "jobs" / "serve_tracking.py")


@contextmanager
def served(port: int, home: Path, storage: Path) -> Iterator[subprocess.Popen[str]]:
    """The job, from when its server answers; stopped at the end, if the test has not stopped it."""
    command = [sys.executable, JOB, "--port", str(port), "--storage", str(storage), "--copy-seconds", "0.5"]
    server = subprocess.Popen(command, env={**os.environ, "HOME": str(home)}, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 400
        while not answers(port):
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.2)
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(100)


def mlflow_of(job: subprocess.Popen[str]) -> int:
    """The process of the MLflow server that a job has started; 0 between two of them."""
    children = "".join(path.read_text() for path in Path(f"/proc/{job.pid}/task").glob("*/children")).split()
    named = (child for child in children if b"mlflow" in Path(f"/proc/{child}/cmdline").read_bytes())
    return int(next(named, "0"))


def listening(port: int) -> set[str]:
    """Local addresses that a port listens on, as /proc writes them."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {words[1].split(":")[0] for words in lines if words[3] == "0A" and int(words[1].split(":")[1], 16) == port}


@pytest.mark.slow
def test_a_server_whose_job_was_killed_is_served_and_copied_again(tmp_path: Path) -> None:
    """It answered, so the job that was started again left it alone, and what it was told was in no copy."""
    port, home, storage = free_port(), tmp_path / "machine", tmp_path / "storage"
    with served(port, home, storage) as killed:
        killed.kill()
        killed.wait()
        assert answers(port), "MLflow goes on by itself"
        with served(port, home, storage) as again:
            while not (mlflow_of(again) and answers(port)):  # until then the one that was left answers
                assert again.poll() is None
                time.sleep(0.2)
            MlflowClient(f"http://127.0.0.1:{port}").create_experiment("after")
    copy = tmp_path / "copy" / "mlflow.db"
    restore(copy, Folder.at(storage))
    with sqlite3.connect(copy) as database:
        assert ("after",) in database.execute("SELECT name FROM experiments").fetchall()


@pytest.mark.slow
def test_runs_survive_the_machine_that_served_them(tmp_path: Path) -> None:
    port, storage = free_port(), tmp_path / "storage"
    with served(port, tmp_path / "lost-machine", storage) as server:
        assert listening(port) == {"0100007F"}  # 127.0.0.1 in the byte order of /proc
        client = MlflowClient(f"http://127.0.0.1:{port}")
        run = client.create_run(client.create_experiment("kept"))
        client.log_text(run.info.run_id, "a page", "report.html")
        until, lost = time.monotonic() + 300, mlflow_of(server)
        os.kill(lost, signal.SIGKILL)
        while not (mlflow_of(server) not in (0, lost) and answers(port)) and time.monotonic() < until:
            time.sleep(0.2)
        assert client.get_run(run.info.run_id), "a server that ended is started again"
        assert end_serving(tmp_path / "lost-machine" / ".raymed" / "tracking" / "mlflow.db", 100), "as `make down` ends it"
        said, _ = server.communicate(timeout=100)
    assert server.returncode == 0 and "copied" in said
    assert (storage / COPY / "database.json").exists()
    database = tmp_path / "fresh-machine" / "mlflow.db"
    restore(database, Folder.at(storage))
    fresh = MlflowClient(f"sqlite:///{database}")
    assert fresh.get_run(run.info.run_id).info.experiment_id == run.info.experiment_id
    assert next((storage / "artifacts").rglob("report.html")).read_text() == "a page"


@pytest.mark.slow
def test_a_server_that_is_killed_before_anybody_saw_it_answer_is_started_again(tmp_path: Path) -> None:
    server = _Server(tmp_path / "mlflow.db", Folder.at(tmp_path / "storage"), free_port())
    try:
        killed = server._process
        killed.kill()
        killed.wait()
        server.keep_up()
        assert server._process is not killed and server._process.poll() is None
    finally:
        server.stop()


def test_a_copy_that_cannot_be_written_ends_no_server_and_is_tried_again(tmp_path: Path) -> None:
    database, copy, stop = tmp_path / "mlflow.db", tmp_path / "storage" / COPY / "database.json", Event()
    sqlite3.connect(database).execute("CREATE TABLE runs (id)").connection.close()
    copy.mkdir(parents=True)  # a folder in its place, as long as the storage is away
    keeping = Thread(target=_keep_copy, args=(lambda: None, database, Folder.at(tmp_path / "storage"), 0.1, stop))
    keeping.start()
    time.sleep(1)
    assert keeping.is_alive()
    copy.rmdir()
    until = time.monotonic() + 20
    while not copy.is_file() and time.monotonic() < until:
        time.sleep(0.1)
    stop.set()
    keeping.join()
    restore(tmp_path / "again.db", Folder.at(tmp_path / "storage"))
    assert sqlite3.connect(tmp_path / "again.db").execute("SELECT count(*) FROM runs").fetchone() == (0,)
