"""The cores that a run's workers compute on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

THREADS = Path("/proc/self/task")


def keep_apart(place: int, workers: int, threads: int) -> None:
    """Let this process compute on cores that no other of so many workers uses, where together they have the machine.

    Linux lets two of them share a core for milliseconds while the next batch is made on another one, and each sum over the
    workers is a wait for the slowest. Where there are more cores than theirs others may be at work there, of which nothing
    is known here.

    Args:
        place: of this worker among those of its machine, from 0.
        workers: of the run, on this machine.
        threads: that each of them computes with.
    """
    if workers == 1 or not THREADS.exists():  # Linux alone has both
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == workers * threads:
        for thread in THREADS.iterdir():
            with contextlib.suppress(OSError):  # it has just ended, or a container forbids this: Linux chooses, then
                os.sched_setaffinity(int(thread.name), cores[place * threads : (place + 1) * threads])
