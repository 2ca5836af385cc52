"""Before a cluster's machines end, what runs there is told, and waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RAY_TOKEN
from ports import free_port

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
LIMIT = 900  # seconds for what a busy machine does
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(2)
    pathlib.Path({folder!r}, "saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path({folder!r}, "begun").touch()
time.sleep(3600)
"""


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT)
def test_a_submitted_job_is_told_to_end_and_waited_for_until_it_has_saved(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")} | RAY_TOKEN
    environment |= {"HOME": str(tmp_path), "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    start = [RAY, "start", "--head", "--port=0", "--num-cpus=1", "--disable-usage-stats", "--block"]
    start += ["--dashboard-host=127.0.0.1", f"--dashboard-port={address.rpartition(':')[2]}"]
    start += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]

    def begin() -> subprocess.Popen[bytes]:
        with (tmp_path / "head.log").open("w") as log:
            return subprocess.Popen(start, env=environment, cwd=tmp_path, stdout=log, stderr=log)

    head = begin()
    (tmp_path / "job.py").write_text(SAVES.format(folder=str(tmp_path)))
    submit = [RAY, "job", "submit", f"--address={address}", "--no-wait", "--", sys.executable, str(tmp_path / "job.py")]
    try:
        until = time.monotonic() + LIMIT
        while subprocess.run(submit, env=environment, cwd=tmp_path, capture_output=True).returncode:  # it is still starting
            assert time.monotonic() < until, (tmp_path / "head.log").read_text()
            if head.poll() is not None:  # Ray gives its start 30 s
                head = begin()
            time.sleep(1)
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until
            time.sleep(0.2)
        winds_down = [sys.executable, str(REPOSITORY / "jobs" / "wind_down.py"), f"--address={address}"]
        ended = subprocess.run(winds_down, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    finally:
        head.terminate()
        head.wait(60)
    assert ended.stdout.startswith("1 jobs ended; no MLflow server was running here"), ended.stdout + ended.stderr
    assert (tmp_path / "saved").exists(), "it was not waited for"
