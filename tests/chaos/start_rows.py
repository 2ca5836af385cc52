"""The row about starting: three jobs bring up Rays of their own at once, on a machine that others keep busy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from test_local_ray import START, interfaces

JOBS = 3
LOAD = 8  # processes that want a CPU, for each there is
PATIENCE = 900  # seconds; twice as long as Ray is given to start


def busy_starts(tries: int, seed: int, folder: Path) -> str:
    """Every second time Python's bytecode is not there either, as after an installation."""
    again = 0
    for attempt in range(tries):
        cold = {"PYTHONPYCACHEPREFIX": str(folder / f"bytecode-{attempt}")} if attempt % 2 else {}
        with _load():
            jobs = [_start(cold) for _ in range(JOBS)]
            try:
                ended = [(*job.communicate(timeout=PATIENCE), job.returncode) for job in jobs]
            finally:
                for job in jobs:
                    job.kill()
        for output, said, code in ended:
            assert code == 0, said
            assert {*interfaces(output)} == {"127.0.0.1"}, output
            again += "trying once more" in said
    return f"{JOBS * tries} of {JOBS * tries} started, {again} of them at the second try; all on loopback"


def _start(environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=os.environ | environment, **pipes)


@contextmanager
def _load() -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(LOAD * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
