"""`ray up` over real hosts, a search submitted from another one, and a host that loses its power in the middle."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import write_prepared
from lab import Host, Lab, missing

REPOSITORY = Path(__file__).parent.parent.parent
WHY_NOT = missing() or ("" if os.environ.get("RAYMED_LAB") else "takes minutes and needs root: `make cluster-test` runs it")
TRIALS, EPOCHS = 3, 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A person's machine, a head and two workers; what `make setup` would install is there already."""
    folder = Path(tempfile.mkdtemp(prefix="raymed-lab-", dir="/var/tmp"))
    with Lab(folder, 4) as lab:
        for host in lab.hosts[1:]:
            installed = host.home / "raymed" / ".venv"
            installed.mkdir(parents=True)
            for name in ("bin", "lib", "pyvenv.cfg"):
                (installed / name).symlink_to(REPOSITORY / ".venv" / name)
            (installed / ".ready").touch()
        yield lab
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Iterator[Path]:
    """cluster.local.yaml with its FILL INs filled in; the cluster is up."""
    config = yaml.safe_load((REPOSITORY / "cluster.local.yaml").read_text())
    laptop, head, *workers = lab.hosts
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    config["auth"]["ssh_user"] = "root"
    config["setup_commands"] = [line.replace("/mnt/raymed", f"{lab.folder}/storage") for line in config["setup_commands"]]
    file = lab.folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    typed(laptop, "ray get-auth-token --generate")
    print(typed(laptop, f"cd {REPOSITORY} && ray up --yes {file}"))
    yield file
    print(typed(laptop, f"cd {REPOSITORY} && ray down --yes {file}"))
    assert not any(host.running("raylet/raylet") for host in lab.hosts if host.power.poll() is None)


def test_a_search_finishes_and_loses_nothing_when_a_host_loses_its_power(lab: Lab, cluster: Path) -> None:
    laptop, _, *workers = lab.hosts
    data = write_prepared(lab.folder / "data", patients=64, slices=8)
    tunnel = subprocess.Popen(laptop.words(f"cd {REPOSITORY} && exec ray dashboard {cluster}"))
    wait_for(lambda: laptop.run("curl -s http://127.0.0.1:8265/api/version").returncode == 0, 60, "the tunnel")
    job = f"python jobs/tune_lung.py --data {data.folder.uri} --name night --trials {TRIALS} --max-epochs {EPOCHS} --json "
    job += "--search.halving.first_rung 0 --train.patience 0"
    submitted = subprocess.Popen(
        laptop.words(f"cd {REPOSITORY} && ray job submit --address http://127.0.0.1:8265 --working-dir . -- {job}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    runs = lab.folder / "storage" / "night" / "trials"
    wait_for(lambda: victim(workers) is not None and any(runs.glob("*/step-*/sealed-000.json")), 300, "a checkpoint")
    host = victim(workers)
    assert host is not None
    host.cut_power()
    print(f"cut the power of {host.name}")
    said, _ = submitted.communicate(timeout=900)
    tunnel.terminate()
    print(said)
    assert submitted.returncode == 0
    summary = json.loads(next(line for line in said.splitlines() if line.startswith('{"')))
    assert summary["states"] == {"COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
    # MLflow's database, as the copy in the storage has it: one run a trial, every epoch once
    path = lab.folder / "storage" / "tracking" / "mlflow.db"
    wait_for(lambda: path.exists() and finished(path) == TRIALS + 1, 90, "the copy of MLflow's database")
    counts = sqlite3.connect(path).execute(
        "SELECT COUNT(*), COUNT(DISTINCT step) FROM metrics WHERE key = 'epoch' GROUP BY run_uuid"
    )
    assert counts.fetchall() == [(EPOCHS, EPOCHS)] * TRIALS


def typed(host: Host, command: str) -> str:
    done = host.run(command, timeout=600)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def victim(workers: list[Host]) -> Host | None:
    """A worker host on which a trial trains."""
    return next((host for host in workers if host.running("ray::RayTrainWorker")), None)


def finished(database: Path) -> int:
    return int(sqlite3.connect(database).execute("SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'").fetchone()[0])


def wait_for(happened: object, seconds: float, what: str) -> None:
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.5)
