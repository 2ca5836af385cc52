"""Before a cluster's machines end, what runs there is told, and waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_head import ray_head

REPOSITORY = Path(__file__).parents[2]
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
    (tmp_path / "job.py").write_text(SAVES.format(folder=str(tmp_path)))
    with ray_head(tmp_path, cpus=1, RAY_JOB_STOP_WAIT_TIME_S="120") as head:
        begun = head.submit("--no-wait", "--", sys.executable, str(tmp_path / "job.py"))
        assert begun.returncode == 0, begun.stdout + begun.stderr
        until = time.monotonic() + LIMIT
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until
            time.sleep(0.2)
        command = [sys.executable, str(REPOSITORY / "jobs" / "wind_down.py"), f"--address={head.address}"]
        ended = subprocess.run(command, env=head.environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert ended.stdout.startswith("1 jobs ended; no MLflow server was running here"), ended.stdout + ended.stderr
    assert (tmp_path / "saved").exists(), "it was not waited for"
