"""How far a long reading has come."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("raymed")

PROGRESS_SECONDS = 5.0


class ReadingProgress:
    """Says how far the reading of slices or headers has come, and, from the second addition on, how long it will take."""

    def __init__(self, total: int, headers: bool = False) -> None:
        """Args: headers: those of files are read, and not slices."""
        self._total, self._done, self._headers = total, 0, headers
        self._first: tuple[int, float] | None = None
        self._said = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._first is None:
            self._first = self._done, now
        elif now - self._said >= PROGRESS_SECONDS:
            self._said = now
            rate = (self._done - self._first[0]) / (now - self._first[1])
            left = (self._total - self._done) / rate
            if self._headers:
                log.info("read the headers of %d of %d files, about %.0f s left", self._done, self._total, left)
            else:
                log.info("read %d of %d, about %.0f s left", self._done, self._total, left)
