"""Stopping a search by hand: at the first Ctrl-C, or SIGTERM (``ray job stop``), runs save a checkpoint before it ends."""

from __future__ import annotations

import _thread
import logging
import signal
import threading
from types import FrameType, TracebackType

from ray.actor import ActorHandle

from raymed.job.departure import DEADLINE, SIGNALS, ending
from raymed.job.job import interrupted

log = logging.getLogger("raymed")

PATIENCE_SECONDS = 100.0  # for runs to reach their next step and save; clouds give two minutes in all


class Interrupt:
    """While entered, the first signal asks all runs to leave; a second one, or too long a wait, stops at once.

    Attributes:
        told: whether a signal came.
    """

    told = False

    def __init__(self, stop_decisions: ActorHandle) -> None:
        self._verdicts = stop_decisions
        self._waited = threading.Timer(PATIENCE_SECONDS, _thread.interrupt_main)
        self._waited.daemon = True
        self._ending = ending(PATIENCE_SECONDS + DEADLINE, interrupted())  # MLflow, or a storage, may be waited for

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._tell) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._waited.cancel()
        self._ending.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self) -> None:
        """Stop at once."""
        self.told = True
        _thread.interrupt_main()

    def _tell(self, number: int, frame: FrameType | None) -> None:
        if self.told:
            raise KeyboardInterrupt
        self.told = True
        threading.Thread(target=self._pass_on, daemon=True).start()  # a signal handler must not wait for Ray's locks
        self._waited.start()
        self._ending.start()

    def _pass_on(self) -> None:
        log.warning(
            "stopping: runs under way save a checkpoint first, for at most %.0f s. Once more to stop at once.",
            PATIENCE_SECONDS,
        )
        self._verdicts.leave.remote()
