"""The actor of stop decisions may be lost: Ray starts it again, and it is told once more what the study holds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from types import TracebackType

import ray
from ray.actor import ActorHandle

log = logging.getLogger("raymed")

PAUSE = 0.5  # seconds between two looks at the actor


class Reminder:
    """While entered, waits for the actor to be lost, and then gives it every decision again."""

    def __init__(self, stop_decisions: ActorHandle, decisions: Callable[[], Iterable[tuple[str, int, bool]]]) -> None:
        """`decisions` gives what was decided so far: a run's name, the epoch, and whether the run stops after it."""
        self._verdicts, self._decisions, self._over = stop_decisions, decisions, threading.Event()

    def __enter__(self) -> Reminder:
        threading.Thread(target=self._wait, name="reminder", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()

    def _wait(self) -> None:
        try:
            lost: ray.ObjectRef[None] = self._verdicts.until_lost.remote()
            while not self._over.wait(PAUSE):
                if ray.wait([lost], timeout=0)[0] and not self._over.is_set():
                    log.warning("the process that tells runs whether to stop was lost: it is started again")
                    for name, epoch, stop in self._decisions():
                        self._verdicts.give.remote(name, epoch, stop)
                    lost = self._verdicts.until_lost.remote()
        except Exception as error:  # Ray has ended, by which the search does too
            log.debug("runs cannot be told any more whether to stop: %s", error)
