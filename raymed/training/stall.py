"""A run that gets nowhere is ended, so that it can be tried again: a deadlocked collective or a dead disk says nothing."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback

from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

STALLED = "stalled.txt"  # in the run's folder: where a worker stood when it was ended
EXIT_CODE = 75
SHOWN = 3  # innermost frames
NOTE_SECONDS = 10.0  # for the note to be written


class StallGuard:
    """Watches a worker's steps from a thread of its own, and ends the process when none comes."""

    def __init__(self, minutes: float, folder: Folder, worker: int) -> None:
        """Watch the thread that calls this.

        Args:
            minutes: the longest that a step may take; 0 watches nothing.
            folder: the run's, where a note is left.
        """
        self._limit, self._folder, self._worker = minutes * 60, folder, worker
        self._watched, self._seen, self._over = threading.get_ident(), time.monotonic(), threading.Event()
        if minutes:
            threading.Thread(target=self._watch, daemon=True).start()

    def step(self, allowance: float = 0.0) -> None:
        """The run got on.

        Args:
            allowance: seconds by which the next step may take longer.
        """
        self._seen = time.monotonic() + allowance

    def close(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, self._limit / 4)):
            if time.monotonic() - self._seen > self._limit:
                self._end()

    def _end(self) -> None:
        stack = traceback.extract_stack(sys._current_frames()[self._watched])
        where = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(stack[-SHOWN:]))
        note = f"no step for {self._limit / 60:g} minutes (train.stall_minutes): worker {self._worker} stood in {where}"
        log.error("%s", note)
        # the storage may be what hangs
        writing = threading.Thread(target=self._leave, args=(note,), daemon=True)
        writing.start()
        writing.join(NOTE_SECONDS)
        os._exit(EXIT_CODE)  # an exception would wait for what hangs

    def _leave(self, note: str) -> None:
        if self._folder.exists():  # or it would be written below a mount point
            self._folder.write(STALLED, note.encode())
