"""`ray start --head`, then `ray job submit`: the same script on a running cluster, with Ray's token authentication on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_port

from raymed.data.prepared import Prepared

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


@pytest.mark.slow
def test_a_submitted_search_runs_on_the_cluster_and_prints_where_its_report_is(prepared: Prepared, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-for-this-test-only-0123456789abcdef",
        "RAY_raylet_start_wait_time_s": "120",
    }
    start = [RAY, "start", "--head", "--port=0", "--num-cpus=3", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    start += [
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        "--disable-usage-stats",
        "--block",
    ]
    log = (tmp_path / "head.log").open("w")
    head = subprocess.Popen(start, env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        submit = [RAY, "job", "submit", f"--address=http://127.0.0.1:{port}", "--working-dir", str(REPOSITORY), "--"]
        job = ["python", "jobs/tune_lung.py", "--data", prepared.folder.uri, "--trials", "2", "--max-epochs", "1"]
        job += ["--model.preset", "tiny", "--storage", str(tmp_path / "runs"), "--name", "submitted"]
        deadline = time.time() + 120
        while True:
            done = subprocess.run([*submit, *job], env=environment, capture_output=True, text=True, timeout=400)
            if done.returncode == 0 or time.time() > deadline or head.poll() is not None:
                break
            time.sleep(3)  # the head is still starting
        stranger = {name: value for name, value in environment.items() if not name.startswith("RAY")} | {
            "HOME": str(tmp_path)
        }
        ask = [RAY, "job", "list", f"--address=http://127.0.0.1:{port}"]
        refused = subprocess.run(ask, env=stranger, capture_output=True, text=True, timeout=100)
    finally:
        head.terminate()
        head.wait(60)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "head.log").read_text()
    said = f"report: {tmp_path}/runs/submitted/report.html"
    assert said in done.stdout
    assert refused.returncode != 0 and "uthenticat" in refused.stdout + refused.stderr, "a stranger could ask for jobs"
    assert "models:/raymed-lung@champion" in (tmp_path / "runs" / "submitted" / "report.html").read_text("utf-8")
