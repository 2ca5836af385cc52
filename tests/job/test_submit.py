"""`ray start --head`, then `ray job submit`: the same scripts on a running cluster, with Ray's token authentication on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forks import starting_quick
from ports import free_port

from raymed.data.prepared import Prepared

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Head:
    """A cluster of one machine.

    Attributes:
        home: of its processes.
        environment: of whoever has its token.
    """

    address: str
    home: Path
    environment: dict[str, str]

    def submit(self, *job: str) -> str:
        """What a submitted job prints, once it has ended well."""
        words = [RAY, "job", "submit", f"--address={self.address}", "--working-dir", str(REPOSITORY), "--", "python", *job]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def jobs(self, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        words = [RAY, "job", "list", f"--address={self.address}"]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home, port = tmp_path_factory.mktemp("home"), free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-for-this-test-only-0123456789abcdef",
        "RAY_raylet_start_wait_time_s": "120",
    }
    start = [*starting_quick(RAY), "start", "--head", "--port=0", "--num-cpus=3", "--disable-usage-stats", "--block"]
    start += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    start += [
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
    ]
    log = home / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(start, env=environment, cwd=home, stdout=file, stderr=subprocess.STDOUT)
    made = Head(f"http://127.0.0.1:{port}", home, environment)
    try:
        deadline = time.time() + 120
        while made.jobs(environment).returncode and time.time() < deadline and process.poll() is None:
            time.sleep(1)  # the head is still starting
        assert process.poll() is None, log.read_text()
        yield made
    finally:
        process.kill()  # its processes end with it, at once; asked to, they take half a minute
        process.wait(60)


@pytest.mark.slow
def test_a_submitted_search_runs_on_the_cluster_and_prints_where_its_report_is(
    head: Head, prepared: Prepared, tmp_path: Path
) -> None:
    job = ["jobs/tune_lung.py", "--data", prepared.folder.uri, "--trials", "2", "--max-epochs", "1"]
    job += ["--model.preset", "tiny", "--storage", str(tmp_path / "runs"), "--name", "submitted"]
    assert f"report: {tmp_path}/runs/submitted/report.html" in head.submit(*job)
    assert "models:/raymed-lung@champion" in (tmp_path / "runs" / "submitted" / "report.html").read_text("utf-8")
    stranger = {name: value for name, value in head.environment.items() if not name.startswith("RAY")}
    refused = head.jobs(stranger | {"HOME": str(tmp_path)})
    assert refused.returncode != 0 and "uthenticat" in refused.stdout + refused.stderr, "a stranger could ask for jobs"


@pytest.mark.slow
def test_a_submitted_night_leaves_its_files_at_home_and_not_in_the_copy_that_ray_deletes(head: Head) -> None:
    said = head.submit("jobs/overnight.py", "--phantom.patients", "12", "--no_grid", "--epochs", "1")
    left = head.home / "raymed"
    assert f"summary: {left}/outputs/overnight_best_summary.txt" in said
    assert (left / "outputs" / "vision_bridge_overnight_best.pt").is_file()
    assert list((left / "runs").glob("*/report.html"))
