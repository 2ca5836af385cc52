"""Leaving in good order: a run whose machine or job is being taken away saves a checkpoint at its next step.

Word of it comes to a worker as SIGTERM, as a machine that Ray drains, or from the job (Ctrl-C).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from enum import IntEnum
from types import FrameType

import ray
from ray.actor import ActorHandle

from raymed.compat.ray_train import WorkerCallback, is_drained

_terminated = threading.Event()


class Notice(IntEnum):
    """What a worker was told. The greater of two workers' notices holds for both."""

    NONE = 0
    MACHINE = 1  # this process or machine is being taken away: the run goes on elsewhere
    JOB = 2  # the job is being stopped: running it again goes on


class Leave(Exception):  # noqa: N818 - no error: the way out of the middle of an epoch
    """All workers leave at the same step."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice.name)
        self.notice = notice


class Preempted(Exception):  # noqa: N818
    """The workers have left with a checkpoint; Ray Train starts them again where there is room."""


class NoteTermination(WorkerCallback):
    """Lets a worker of Ray Train note the first SIGTERM instead of dying of it. A second one ends it as before."""

    def after_init_train_context(self) -> None:
        """Called in the worker's main thread, where signals are handled."""
        _terminated.clear()
        before = signal.getsignal(signal.SIGTERM)

        def note(number: int, frame: FrameType | None) -> None:
            if _terminated.is_set() and callable(before):
                before(number, frame)
            _terminated.set()

        signal.signal(signal.SIGTERM, note)


def is_preempted() -> bool:
    """Whether a worker of Ray Train was terminated, or its machine is being drained."""
    return _terminated.is_set() or is_drained()


class Notices:
    """One worker's view of what it was told."""

    def __init__(self, stop_decisions: ActorHandle | None, is_preempted: Callable[[], bool]) -> None:
        self._is_preempted, self._from_job = is_preempted, threading.Event()
        if stop_decisions is not None:
            told: ray.ObjectRef[None] = stop_decisions.told_to_leave.remote()
            told.future().add_done_callback(lambda _: self._from_job.set())  # or the job is gone, which comes to the same

    def newest(self) -> Notice:
        """Asked at every step: without news it takes a look at two flags."""
        if self._from_job.is_set():
            return Notice.JOB
        if self._is_preempted():
            return Notice.MACHINE
        return Notice.NONE
