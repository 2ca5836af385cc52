"""Workers that have a machine's cores between them share none."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys, threading
from raymed.training.cores import keep_apart
over = threading.Event()
threading.Thread(target=over.wait).start()
place, workers, threads = map(int, sys.argv[1:])
keep_apart(place, workers, threads)
print(json.dumps([sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]))
over.set()
"""
CORES = sorted(os.sched_getaffinity(0))[:2]


def cores_of_threads(*numbers: int) -> list[list[int]]:
    """The cores of each thread of a process on CORES that keeps apart."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, numbers)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, CORES),
    )
    cores: list[list[int]] = json.loads(done.stdout)
    return cores


@pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be divided")
def test_every_thread_of_a_worker_is_on_its_own_cores_where_the_workers_have_all_of_them() -> None:
    first, second = cores_of_threads(0, 2, 1), cores_of_threads(1, 2, 1)
    assert (first, second) == ([[CORES[0]]] * len(first), [[CORES[1]]] * len(second))
    assert len(first) > 1, "only one thread was looked at"


@pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be divided")
@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param((0, 1, 1), id="a lone worker"),
        pytest.param((1, 4, 1), id="more workers than cores"),
        pytest.param((0, 2, 2), id="more threads than cores"),
    ],
)
def test_workers_go_where_there_is_room_when_the_cores_are_not_theirs_alone(numbers: tuple[int, int, int]) -> None:
    assert all(cores == CORES for cores in cores_of_threads(*numbers))
