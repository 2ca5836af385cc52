"""A job's own Ray: nobody else on the network reaches it, and it starts on a busy machine, or says why not."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from forks import starting_quick

from raymed.cluster import local_ray
from raymed.data.prepared import Prepared
from raymed.errors import RunError

LOOK = """
import os, re, subprocess

def is_own(pid):
    \"\"\"Forks are nobody's children here, and begin in this folder as all do.\"\"\"
    try:
        return os.readlink(f"/proc/{pid}/cwd") == os.getcwd()
    except OSError:
        return False

def look():
    for line in subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines():
        if any(is_own(pid) for pid in re.findall(r"pid=(\\d+)", line)):
            print("listens on", line.split()[3], line.split()[5])
"""

START = (
    LOOK
    + """
import ray
from raymed.cluster.connection import connect
connect()
@ray.remote
def work(): return 1
assert sum(ray.get([work.remote() for _ in range(3)])) == 3
look()
"""
)

TRAIN = (
    LOOK
    + """
import sys, threading
from raymed.cluster.connection import connect
from raymed.data.prepared import Prepared
from raymed.data.stream import Streamed
from raymed.systems.lung.recipe import LungRecipe
from raymed.training.fit import fit, resources
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
data, storage = sys.argv[1:]
connect()
prepared, over = Prepared.open(data), threading.Event()
def watch():
    while not over.wait(0.1):
        look()
threading.Thread(target=watch, daemon=True).start()
settings = TrainSettings(epochs=1, global_batch=16, micro_batch=5, norm_group=5)
recipe = LungRecipe.for_data(prepared.labels, prepared.size)
assert fit(RunSpec("run", storage, data, recipe, settings, workers=2), Streamed(data), resources(2, 1))
over.set()
"""
)


def interfaces(output: str, process: str = "") -> list[str]:
    """The addresses, without ports, on which a script's processes (of that name) listened when it looked."""
    addresses = re.findall(rf"listens on (\S+):\d+ \S*{process}", output)
    return [address.removeprefix("[::ffff:").rstrip("]") for address in addresses]


@pytest.mark.slow
def test_three_start_at_once_and_none_listens_beyond_loopback(tmp_path: Path) -> None:
    jobs = []
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "start.py").write_text(START)
        command = starting_quick(tmp_path / name / "start.py")
        jobs.append(subprocess.Popen(command, cwd=tmp_path / name, stdout=subprocess.PIPE, text=True))
    for job in jobs:
        output = job.communicate(timeout=300)[0]
        assert job.returncode == 0
        assert len(interfaces(output)) >= 4 and {*interfaces(output)} == {"127.0.0.1"}


@pytest.mark.slow
def test_nothing_listens_beyond_loopback_while_two_workers_train(prepared: Prepared, tmp_path: Path) -> None:
    """torch's own meeting place listened on every interface."""
    (tmp_path / "train.py").write_text(TRAIN)
    command = starting_quick(tmp_path / "train.py", prepared.folder.uri, str(tmp_path))
    environment = os.environ | {"RAY_CHDIR_TO_TRIAL_DIR": "0"}  # or they leave the folder by which they are known
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert interfaces(done.stdout, "ray::RayTrainWo"), "the workers were seen"
    assert {*interfaces(done.stdout)} == {"127.0.0.1"}


def test_a_start_that_fails_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def init(address: str, **_: object) -> None:
        tried.append(address)
        if len(tried) == 1:
            raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: tried.append("ended"))  # what was left of the first
    local_ray.start()
    assert tried == ["local", "ended", "local"]


def test_a_machine_on_which_ray_does_not_start_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(
        RunError, match=r"(?s)twice: The current node timed out.*the load is \d+.*run the same command again"
    ):
        local_ray.start()
