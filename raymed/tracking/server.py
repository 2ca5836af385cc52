"""An MLflow server that lives on a cluster's head, and whose database outlives that machine.

The database lies on a local disk, where SQLite is safe; what changed of it goes to a consistent copy in the storage, and a
server that starts on an empty disk begins with that copy. Artefacts go to the storage at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from raymed.errors import RunError, UserError
from raymed.storage.folder import Folder
from raymed.tracking.database_copy import DatabaseCopy

log = logging.getLogger("raymed")

COPY = "tracking"  # folder of the database's copy, in the storage
PERIOD = 2.0  # seconds between two looks at the server
LETTING_GO = 20.0  # seconds for a server's processes to end by themselves


def serve(database: Path, storage: Folder, port: int, copy_seconds: float) -> int:
    """Serve until SIGTERM or Ctrl-C; the database is copied a last time then. Only this machine can reach the server.

    A server that ends by itself is started again.

    Returns:
        How often the database was copied.

    Raises:
        RunError: the server does not start.
    """
    restore(database, storage)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = _Server(database, storage, port)
    try:
        return _keep_copy(server.keep_up, database, storage, copy_seconds, stop)
    finally:
        server.stop()


def restore(database: Path, storage: Folder) -> None:
    """Begin with the copy that another machine left; a database that is here already stays as it is."""
    database.parent.mkdir(parents=True, exist_ok=True)
    copy = DatabaseCopy(storage.child(COPY))
    if not database.exists() and copy.exists():
        log.info("the database begins with the copy in %s/%s", storage.uri, COPY)
        part = database.with_suffix(".part")  # a copy that is cut off must not be taken for the database
        part.write_bytes(copy.read())
        part.replace(database)


def answers(port: int) -> bool:
    """Whether an MLflow server answers on this machine."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.read() == b"OK")
    except (OSError, urllib.error.URLError):
        return False


def end_left_over(database: Path, port: int) -> None:
    """End a server of this database whose job was killed: it answers, and nobody copies what it is told."""
    try:
        server, job = map(int, _note(database).read_text("utf-8").split())
        command = Path(f"/proc/{server}/cmdline").read_bytes()
    except (OSError, ValueError):  # none was noted, or it is gone
        return
    if str(database).encode() in command and not Path(f"/proc/{job}").exists():
        log.warning("the job that copied the database was killed: its server is started again")
        _end(server, port)


def end_serving(database: Path, seconds: float) -> bool:
    """End the job that serves this database, which copies it a last time; whether one ran.

    Raises:
        UserError: it has not ended in time.
    """
    try:
        job = int(_note(database).read_text("utf-8").split()[1])
        if b"serve_tracking" not in Path(f"/proc/{job}/cmdline").read_bytes():
            return False
        os.kill(job, signal.SIGTERM)
    except (OSError, ValueError, IndexError):  # none was noted, or it is gone
        return False
    until = time.monotonic() + seconds
    while _is_there(job):
        if time.monotonic() > until:
            raise UserError(f"MLflow's database has not been copied within {seconds:.0f} s: is the storage there?")
        time.sleep(0.2)
    return True


def _is_there(process: int) -> bool:
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())  # empty: it has ended, and waits to be taken note of
    except OSError:
        return False


def _note(database: Path) -> Path:
    """Where the processes of the server and of its job are noted."""
    return database.with_suffix(".processes")


def _end(group: int, port: int) -> None:
    """End a server's processes. Its port is free then: they hold it for longer than they answer."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        until = time.monotonic() + LETTING_GO
        while not _is_free(port) and time.monotonic() < until:
            time.sleep(0.2)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: ended connections are no obstacle
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class _Server:
    """MLflow's server process."""

    def __init__(self, database: Path, storage: Folder, port: int) -> None:
        self._port, self._note = port, _note(database)
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{database}"]
        self._command += ["--artifacts-destination", storage.child("artifacts").uri]
        self._has_answered = False
        self.start()

    def start(self) -> None:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # Ctrl-C is for us alone
        self._process = subprocess.Popen(self._command, env={**os.environ, **quiet}, start_new_session=True)
        self._note.write_text(f"{self._process.pid} {os.getpid()}", "utf-8")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()

    def keep_up(self) -> None:
        """Start it again where it has ended.

        Raises:
            RunError: it gave up before it had answered once: its port is taken, or its database is none. Where somebody else
                ended it, that says nothing.
        """
        status = self._process.poll()
        if status is None:
            self._has_answered = self._has_answered or answers(self._port)
        elif self._has_answered or status < 0:
            log.warning("mlflow server ended with status %d: it is started again", status)
            _end(self._process.pid, self._port)  # what is left of its children, which hold the port
            self.start()
        else:
            raise RunError(f"mlflow server ended with status {status} before it answered; what it said stands above")


def _keep_copy(look: Callable[[], None], database: Path, storage: Folder, seconds: float, stop: threading.Event) -> int:
    """Copy the database as it changes, until told to stop; `look` is called more often, after the server."""
    copy, copies, copied, next_copy = DatabaseCopy(storage.child(COPY)), 0, -1, time.monotonic() + seconds
    watch: sqlite3.Connection | None = None
    try:
        while True:
            over = stop.wait(min(seconds, PERIOD))
            if not over:
                look()
                if time.monotonic() < next_copy:
                    continue
            next_copy = time.monotonic() + seconds
            if watch is None and database.exists():
                watch = sqlite3.connect(database)
            if watch is not None:
                version = watch.execute("PRAGMA data_version").fetchone()[0]  # changes when another connection writes
                if version != copied:
                    try:
                        copy.write(_snapshot(watch))
                        copies, copied = copies + 1, version
                    except (UserError, OSError, sqlite3.Error) as error:
                        if over:
                            raise
                        log.warning("the copy of the database could not be written, trying again: %s", error)
            if over:
                return copies
    finally:
        if watch is not None:
            watch.close()


def _snapshot(source: sqlite3.Connection) -> bytes:
    """The database as it stands between two transactions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        target = sqlite3.connect(path)
        source.backup(target)
        target.close()
        return path.read_bytes()
