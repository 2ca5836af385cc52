"""A job's own Ray: nobody else on the network reaches it, and it starts on a busy machine, or says why not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from raymed import local_ray
from raymed.errors import RunError

START = """
import re, subprocess
import psutil, ray
from raymed.cluster import connect
connect()
@ray.remote
def work(): return 1
assert sum(ray.get([work.remote() for _ in range(3)])) == 3
own = {each.pid for each in psutil.Process().children(recursive=True)} | {psutil.Process().pid}
for line in subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines():
    if own & {int(pid) for pid in re.findall(r"pid=(\\d+)", line)}:
        print("listens on", line.split()[3])
"""


@pytest.mark.slow
def test_three_start_at_once_and_none_listens_beyond_loopback() -> None:
    jobs = [subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for job in jobs:
        output = job.communicate(timeout=300)[0]
        assert job.returncode == 0
        addresses = re.findall(r"listens on (\S+):\d+", output)
        assert len(addresses) >= 4 and {each.removeprefix("[::ffff:").rstrip("]") for each in addresses} == {"127.0.0.1"}


def test_a_start_that_fails_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def init(address: str, **_: object) -> None:
        tried.append(address)
        if len(tried) == 1:
            raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr("ray.init", init)
    local_ray.start()
    assert tried == ["local", "local"]


def test_a_machine_on_which_ray_does_not_start_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **_: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(
        RunError, match=r"(?s)twice: The current node timed out.*the load is \d+.*run the same command again"
    ):
        local_ray.start()
