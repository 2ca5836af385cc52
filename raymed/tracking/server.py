"""An MLflow server that lives on a cluster's head, and whose database outlives that machine.

The database lies on a local disk, where SQLite is safe; a consistent copy goes to the storage whenever it has changed, and a
server that starts on an empty disk begins with that copy. Artefacts go to the storage at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

from raymed.errors import RunError, UserError
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

COPY = "tracking/mlflow.db"  # of the database, in the storage


def serve(database: Path, storage: Folder, port: int, copy_seconds: float) -> int:
    """Serve until SIGTERM or Ctrl-C; the database is copied a last time then. Only this machine can reach the server.

    Returns:
        How often the database was copied.

    Raises:
        RunError: the server does not start, or ends by itself.
    """
    restore(database, storage)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", storage.child("artifacts").uri]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env={**os.environ, **quiet}, start_new_session=True)  # Ctrl-C is for us alone
    try:
        return _keep_copy(server, database, storage, copy_seconds, stop)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def restore(database: Path, storage: Folder) -> None:
    """Begin with the copy that another machine left; a database that is here already stays as it is."""
    database.parent.mkdir(parents=True, exist_ok=True)
    if not database.exists() and storage.exists(COPY):
        log.info("the database begins with the copy in %s/%s", storage.uri, COPY)
        part = database.with_suffix(".part")  # a copy that is cut off must not be taken for the database
        part.write_bytes(storage.read(COPY))
        part.replace(database)


def answers(port: int) -> bool:
    """Whether an MLflow server answers on this machine."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.read() == b"OK")
    except (OSError, urllib.error.URLError):
        return False


def _keep_copy(
    server: subprocess.Popen[bytes], database: Path, storage: Folder, seconds: float, stop: threading.Event
) -> int:
    copies, copied = 0, -1
    watch: sqlite3.Connection | None = None
    try:
        while True:
            over = stop.wait(seconds)
            if not over and server.poll() is not None:
                raise RunError(f"mlflow server ended with status {server.returncode}; what it said stands above")
            if watch is None and database.exists():
                watch = sqlite3.connect(database)
            if watch is not None:
                version = watch.execute("PRAGMA data_version").fetchone()[0]  # changes when another connection writes
                if version != copied:
                    try:
                        storage.write(COPY, _snapshot(watch))
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
