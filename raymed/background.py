"""What goes on beside the main thread: a step, again and again, at once or after a pause."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

UNTIL_WOKEN = math.inf  # the pause of a step that waits for something to do


class Background:
    """A thread that does a step whenever it is woken, or the pause that the last one asked for is over."""

    def __init__(self, name: str, step: Callable[[], float | None], first: float = 0.0) -> None:
        """
        Args:
            step: does what there is to do, and returns the seconds until the next one; None ends the thread.
            first: seconds until the first one.
        """
        self._step, self._first = step, first
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._woken.set()

    def join(self, seconds: float) -> None:
        """Wait for the end, so long at most."""
        self._thread.join(seconds)

    def _run(self) -> None:
        pause: float | None = self._first
        while pause is not None:
            self._woken.wait(None if pause == UNTIL_WOKEN else pause)
            self._woken.clear()
            pause = self._step()
