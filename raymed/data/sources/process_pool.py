"""Many files read in processes beside this one: what Python does with a header takes longer than its disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

FEW = 4000  # that are read here: processes take some seconds to start
AT_ONCE = 256  # that a process is given

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(read: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`read` of each item, in their order.

    Args:
        read: can be pickled, and so can what it returns.
    """
    processes = min(os.cpu_count() or 1, len(items) // AT_ONCE)
    if len(items) <= FEW or processes < 2:
        yield from map(read, items)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)
    try:
        yield from pool.map(read, items, chunksize=AT_ONCE)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """Ctrl-C is for the process that asked, and no process outlives that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
