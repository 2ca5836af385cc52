"""`ray up` over real hosts, a search submitted from another one, and machines that lose their power in the middle."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import write_prepared
from lab import Host, Lab, missing, wait_for
from search_record import reports, summary, with_a_checkpoint

from raymed.storage.folder import Folder
from raymed.tracking.server import restore

REPOSITORY = Path(__file__).parent.parent.parent
WHY_NOT = missing() or ("" if os.environ.get("RAYMED_LAB") else "takes minutes and needs root: `make cluster-test` runs it")
TRIALS, EPOCHS = 3, 12
HEAD, WORKERS = 1, (2, 3)  # numbers of the lab's hosts; 0 is a person's machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@dataclass
class Cluster:
    """cluster.local.yaml over the lab's hosts, with its FILL INs filled in."""

    lab: Lab
    file: Path
    tunnel: subprocess.Popen[bytes] | None = None

    @property
    def storage(self) -> Path:
        return self.lab.folder / "storage"

    def up(self) -> None:
        self.typed(f"ray up --yes {self.file}")
        self.tunnel = subprocess.Popen(self.lab.hosts[0].words(f"cd {REPOSITORY} && exec ray dashboard {self.file}"))
        wait_for(lambda: self.typed("curl -s http://127.0.0.1:8265/api/version || true") != "", 60, "the tunnel")
        wait_for(lambda: all(self.lab.hosts[number].running("raylet/raylet") for number in WORKERS), 180, "the workers")

    def down(self) -> None:
        if self.tunnel:
            self.tunnel.terminate()
            self.tunnel.wait(30)
        self.typed(f"ray down --yes {self.file}")

    @contextmanager
    def submit(self, job: str) -> Iterator[subprocess.Popen[str]]:
        command = f"ray job submit --address http://127.0.0.1:8265 --working-dir . -- {job}"
        words = self.lab.hosts[0].words(f"cd {REPOSITORY} && PYTHONUNBUFFERED=1 exec {command}")
        submitted = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield submitted
        except BaseException:
            submitted.kill()
            print(submitted.communicate()[0])
            raise

    def typed(self, command: str) -> str:
        done = self.lab.hosts[0].run(f"cd {REPOSITORY} && {command}", timeout=600)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A person's machine, a head and two workers, up; what `make setup` would install is there already."""
    folder = Path(tempfile.mkdtemp(prefix="raymed-lab-", dir="/var/tmp"))
    with Lab(folder, 4) as lab:
        for number in (HEAD, *WORKERS):
            install(lab.hosts[number])
        config = yaml.safe_load((REPOSITORY / "cluster.local.yaml").read_text())
        addresses = [lab.hosts[number].address for number in WORKERS]
        config["provider"] |= {"head_ip": lab.hosts[HEAD].address, "worker_ips": addresses}
        config["auth"]["ssh_user"] = "root"
        config["setup_commands"] = [line.replace("/mnt/raymed", f"{folder}/storage") for line in config["setup_commands"]]
        cluster = Cluster(lab, folder / "cluster.yaml")
        cluster.file.write_text(yaml.safe_dump(config))
        cluster.typed("ray get-auth-token --generate")
        cluster.up()
        yield cluster
        cluster.down()
        assert not lab.hosts[HEAD].running("raylet/raylet")
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def job(cluster: Cluster) -> str:
    data = write_prepared(cluster.lab.folder / "data", patients=64, slices=16)
    words = f"python jobs/tune_lung.py --data {data.folder.uri} --trials {TRIALS} --max-epochs {EPOCHS} --json"
    return f"{words} --search.halving.first_rung 0"


def test_nobody_gets_in_without_the_token(cluster: Cluster) -> None:
    asked = "env -u RAY_AUTH_MODE HOME=/nowhere ray job list --address http://127.0.0.1:8265"
    refused = cluster.lab.hosts[0].run(asked)
    assert refused.returncode != 0 and "uthenticat" in refused.stdout + refused.stderr
    other = cluster.lab.hosts[WORKERS[0]].run(f"curl -s -m 5 http://{cluster.lab.hosts[HEAD].address}:8265/api/version")
    assert other.returncode == 7, "the dashboard listens on loopback: from another machine the connection is refused"


def test_a_search_finishes_and_loses_nothing_when_a_host_loses_its_power(cluster: Cluster, job: str) -> None:
    with cluster.submit(f"{job} --name cut") as submitted:
        lost = wait_for(
            lambda: with_a_checkpoint(cluster.storage / "cut") == TRIALS and victim(cluster),
            1200,
            "a checkpoint of every trial",
        )
        lost.cut_power()
        said, _ = submitted.communicate(timeout=1800)
    assert submitted.returncode == 0, said
    assert summary(said)["states"] == {"COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}, said
    assert set(reports(cluster.storage / "cut").values()) == {1}, "an epoch was lost and trained again"
    assert len(reports(cluster.storage / "cut")) == TRIALS * EPOCHS
    # in MLflow, as the copy in the storage has it: one run a trial, every epoch once
    path = cluster.lab.folder / "copied.db"
    wait_for(lambda: copied(cluster.storage, path) and finished(path) == TRIALS + 1, 90, "the copy of MLflow's database")
    query = "SELECT COUNT(*), COUNT(DISTINCT step) FROM metrics WHERE key = 'epoch' GROUP BY run_uuid"
    assert sqlite3.connect(path).execute(query).fetchall() == [(EPOCHS, EPOCHS)] * TRIALS


def test_a_search_goes_on_under_a_fresh_head_when_the_head_loses_its_power(cluster: Cluster, job: str) -> None:
    with cluster.submit(f"{job} --name head") as submitted:
        wait_for(lambda: with_a_checkpoint(cluster.storage / "head") == TRIALS, 1200, "a checkpoint of every trial")
        cluster.lab.hosts[HEAD].cut_power()
        submitted.kill()
    before = reports(cluster.storage / "head")
    for number in (HEAD, *WORKERS):
        if cluster.lab.hosts[number].power.poll() is not None:
            cluster.lab.replace(number)
            install(cluster.lab.hosts[number])
    cluster.down()
    cluster.up()
    with cluster.submit(f"{job} --name head") as submitted:
        said, _ = submitted.communicate(timeout=1800)
    assert summary(said)["states"] == {"COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}, said
    again = reports(cluster.storage / "head") - before
    assert len(reports(cluster.storage / "head")) == TRIALS * EPOCHS
    assert max(Counter(trial for trial, epoch in again if (trial, epoch) in before).values(), default=0) <= 1


def install(host: Host) -> None:
    installed = host.home / "raymed" / ".venv"
    installed.mkdir(parents=True)
    for name in ("bin", "lib", "pyvenv.cfg"):
        (installed / name).symlink_to(REPOSITORY / ".venv" / name)
    (installed / ".ready").touch()


def victim(cluster: Cluster) -> Host | None:
    """A worker host on which a trial trains."""
    return next((host for number in WORKERS if (host := cluster.lab.hosts[number]).running("ray::RayTrainWorker")), None)


def copied(storage: Path, database: Path) -> bool:
    """Whether there is a copy of MLflow's database, which then lies here."""
    database.unlink(missing_ok=True)
    restore(database, Folder.at(storage))
    return database.exists()


def finished(database: Path) -> int:
    return int(sqlite3.connect(database).execute("SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'").fetchone()[0])
