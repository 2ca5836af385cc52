"""One night of a search on a cluster, in which its bucket, MLflow, a spot machine and the head fail in turn.

The bucket, MLflow and Ray are real servers here; AWS's word to the spot machine is played. `make rehearse` prints the table.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from conftest import RAY_TOKEN, write_prepared
from object_store import object_store
from ports import free_port
from search_record import summary
from seen import Row, show
from spot_machine import CAN, REPOSITORY, SETTINGS, await_, machine

from raymed.storage.folder import Folder
from raymed.tracking.server import answers
from raymed.tracking.tracker import Tracker

TRIALS, EPOCHS, AWAY = 3, 40, 30.0  # AWAY: seconds that S3 does not answer
MACHINE = RAY_TOKEN | SETTINGS
EPOCH = re.compile(r"^trial \d+  epoch \d+/", re.MULTILINE)
WHY_NOT = "" if os.environ.get("RAYMED_REHEARSE") else "takes minutes: `make rehearse` runs it"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.skipif(not CAN, reason="this system lets nobody give a machine processes of its own"),
]


@dataclass
class Head:
    """A head: a Ray, MLflow's server and, once submitted, the job, with a home that goes with them."""

    home: Path
    storage: str
    port: int = field(default_factory=free_port)
    mlflow: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Its lines are in a file of that name."""
        home = {"HOME": str(self.home), "RAY_ADDRESS": self.address, "PYTHONPATH": str(REPOSITORY)}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY")} | MACHINE | home
        with self.log(name).open("wb") as log:
            each = subprocess.Popen(words, env=environment, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(each)
        return each

    def log(self, name: str) -> Path:
        return self.home.with_name(f"{self.home.name}-{name}.log")

    def lose_power(self) -> None:
        for process in self.processes:
            for each in (*psutil.Process(process.pid).children(recursive=True), process) if process.poll() is None else ():
                each.kill()
            process.wait()
        shutil.rmtree(self.home)


@contextmanager
def head(home: Path, storage: str) -> Iterator[Head]:
    home.mkdir()
    one = Head(home, storage)
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1"]
    ray += ["--include-dashboard=false", "--disable-usage-stats", f"--port={one.port}", "--node-ip-address=127.0.0.1"]
    ray += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"]
    try:
        one.start("ray", *ray, f"--temp-dir=/tmp/n{os.getpid()}-{home.name}")
        serve = ["jobs/serve_tracking.py", "--storage", storage, "--port", str(one.mlflow), "--copy-seconds", "2"]
        one.start("mlflow", sys.executable, *serve)
        await_(lambda: answers(one.mlflow), "MLflow")
        await_(lambda: "Ray runtime started" in one.log("ray").read_text(), "Ray")
        yield one
    finally:
        if one.home.exists():
            one.lose_power()
        shutil.rmtree(f"/tmp/n{os.getpid()}-{home.name}", ignore_errors=True)


@dataclass
class Night:
    """A submitted search, and what a person reads of it."""

    head: Head
    job: subprocess.Popen[bytes]
    rows: list[Row]

    def said(self) -> str:
        return self.head.log("job").read_text()

    def goes_on(self, since: int, epochs: int = 2) -> None:
        """Until so many more epochs are reported."""

        def more() -> bool:
            assert self.job.poll() is None, f"the search ended:\n{self.said()[-4000:]}"
            return len(EPOCH.findall(self.said()[since:])) >= epochs

        await_(more, f"epochs after\n{self.said()[-4000:]}")

    def suffers(self, fault: str, happen: Callable[[], object], says: str = "") -> None:
        """Cause a fault, wait until the search goes on, and note what a person read that is no epoch's line."""
        since = len(self.said())
        happen()
        if says:
            await_(lambda: re.search(says, self.said()[since:]), f"{says!r} in\n{self.said()[-4000:]}")
        self.goes_on(since)
        lines = [line for line in self.said()[since:].splitlines() if line.strip() and not EPOCH.match(line)]
        self.rows += [(fault if not number else "", line) for number, line in enumerate(lines or ["nothing"])]


def test_a_search_outlives_a_night_of_faults_and_says_what_happened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, rows = time.monotonic(), list[Row]()
    with object_store() as bucket, pytest.MonkeyPatch.context() as environment:
        for name, value in MACHINE.items():
            environment.setenv(name, value)
        source = Path(write_prepared(tmp_path / "data", patients=64, slices=16).folder.path)
        for path in (path for path in source.rglob("*") if path.is_file()):
            Folder.at(bucket).write(f"data/{path.relative_to(source)}", path.read_bytes())
        storage, search = f"{bucket}/raymed", ["jobs/tune_lung.py", "--name", "night", "--data", f"{bucket}/data"]
        search += ["--trials", str(TRIALS), "--max-epochs", str(EPOCHS), "--search.halving.first-rung", "0", "--json"]

        def submit(to: Head) -> Night:
            places = ["--storage", storage, "--tracking-uri", f"http://127.0.0.1:{to.mlflow}"]
            return Night(to, to.start("job", sys.executable, *search, *places), rows)

        def s3_away() -> None:
            bucket.server.send_signal(signal.SIGSTOP)
            time.sleep(AWAY)
            bucket.server.send_signal(signal.SIGCONT)

        def mlflow_killed() -> None:
            server = next(
                each
                for each in psutil.Process(first.processes[1].pid).children()
                if any("mlflow" in word for word in each.cmdline())
            )
            server.kill()

        def spot_notice() -> None:
            spot.metadata.notice = True
            await_(spot.ended.exists, "the machine's end")

        with head(tmp_path / "first", storage) as first, machine(first.address, tmp_path / "spot") as spot:
            night = submit(first)
            night.goes_on(0, 1)
            night.suffers(f"S3 is away for {AWAY:.0f} s", s3_away)
            night.suffers("MLflow is killed", mlflow_killed)
            with machine(first.address, tmp_path / "other"):
                night.suffers("AWS takes the machine back", spot_notice, "is being taken away")
                first.lose_power()
        with head(tmp_path / "second", storage) as second, machine(second.address, tmp_path / "third"):
            night = submit(second)
            night.suffers("the head is lost, and the same command", lambda: None)
            night.job.wait(1800)
            said = night.said()
            assert night.job.returncode == 0, said[-4000:]
            states = summary(said)["states"]
            assert states == {"COMPLETE": TRIALS, "PRUNED": 0, "FAIL": 0}
            tracker = Tracker.open(f"http://127.0.0.1:{second.mlflow}", "raymed-lung")
            for number in range(TRIALS):
                run = str(tracker.find(f"night/trial-{number:04d}"))
                steps = [each.step for each in tracker.client.get_metric_history(run, "val_loss")]
                assert steps == list(range(1, EPOCHS + 1)), f"each epoch once in MLflow: {steps}"
    show([*rows, ("in the morning", f"{states}, after {(time.monotonic() - begun) / 60:.0f} min")], capsys)
    assert not [line for _, line in rows if "Traceback" in line or "urllib3" in line]
