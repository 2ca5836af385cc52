"""A cluster of this machine that `ray start` begins, in processes of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from conftest import RAY_TOKEN
from forks import starting_quick
from ports import free_port

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 300  # that a busy machine gives it


@dataclass(frozen=True)
class Head:
    """One that answers.

    Attributes:
        home: of its processes.
        environment: of whoever has its token.
    """

    address: str
    home: Path
    environment: dict[str, str]

    def submit(self, *words: str, limit: float = 400.0) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, to its end."""
        return self._ask("submit", *words, environment=self.environment, limit=limit)

    def jobs(self, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """`ray job list`, as it is answered in an environment."""
        return self._ask("list", environment=environment, limit=100)

    def runs_jobs(self) -> bool:
        """It lists jobs before it takes any."""
        try:
            return self.submit("--", "true", limit=60).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def _ask(self, verb: str, *words: str, environment: Mapping[str, str], limit: float) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", verb, f"--address={self.address}", *words]
        return subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=limit)


@contextlib.contextmanager
def ray_head(home: Path, cpus: int, **environment: str) -> Iterator[Head]:
    """A head with workers that begin quickly, for a while.

    Args:
        environment: what its processes have beside this one's.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY")} | RAY_TOKEN
    variables |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment
    port = free_port()
    # Of its own: a job joins the head that was begun last of those with one folder. Short: sockets are in it.
    folder = tempfile.mkdtemp(prefix="head-", dir="/tmp")
    command = [*starting_quick(RAY), "start", "--head", "--block", "--port=0", f"--num-cpus={cpus}", "--disable-usage-stats"]
    command += [f"--temp-dir={folder}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    log = home / "head.log"

    def begin() -> subprocess.Popen[bytes]:
        with log.open("w") as file:
            return subprocess.Popen(command, env=variables, cwd=home, stdout=file, stderr=subprocess.STDOUT)

    head, process = Head(f"http://127.0.0.1:{port}", home, variables), begin()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not head.runs_jobs():
            assert time.monotonic() < deadline, log.read_text()
            if process.poll() is not None:  # Ray gives its start 30 s
                process = begin()
            time.sleep(1)
        yield head
    finally:
        # Asked to end, they take half a minute; and an agent that outlives its head looks for it as long, at full load.
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            for each in (*reversed(family), process):
                each.kill()
        process.kill()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
