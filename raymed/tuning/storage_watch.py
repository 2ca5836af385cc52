"""Whether the storage is there, looked at while a search runs: its going away is said once, waited for, and left in the end.

What writes to it meanwhile waits by itself (see raymed/storage/availability.py): here it is said, and here the waiting ends.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import TypeVar

from raymed.errors import RunError
from raymed.storage.availability import require_there
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

PERIOD = 10.0  # seconds between two looks
ANSWER = 20.0  # seconds within which a storage answers: a server that is stopped says nothing
PAUSE = 1.0  # seconds between two looks of one who waits
LEAVING = 30.0  # seconds for the job to end once it has given up; a thread that waits for a dead server cannot be told to

Result = TypeVar("Result")


class StorageWatch:
    """While entered, watches a folder; a storage that is away for too long ends the job.

    Attributes:
        is_away: whether the storage is away.
        gave_up: what to tell the user, once it was away for too long.
    """

    def __init__(
        self,
        folder: Folder,
        minutes: float,
        advice: str,
        stop: Callable[[], None],
        hear: Callable[[], str] = lambda: "",
    ) -> None:
        """Watch a folder that is there now.

        Args:
            minutes: how long the storage may be away.
            advice: how to go on once it is back.
            stop: ends the job at once, if it can.
            hear: what a worker says that waits for the storage; empty where none does. It is passed on while the storage is
                there for this process, so that its machine alone may lack it.
        """
        self._folder, self._minutes, self._advice, self._stop, self._hear = folder, minutes, advice, stop, hear
        self._over, self._stopped = threading.Event(), threading.Event()
        self.is_away, self.gave_up, self._problem = False, "", ""

    def __enter__(self) -> StorageWatch:
        threading.Thread(target=self._watch, name="storage watch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()

    @property
    def absence(self) -> str:
        """What to tell a user whose job ends because the storage is away; empty while it is there."""
        if not self.is_away:
            return ""
        return (
            f"the storage {self._folder.uri} has been away for {self._minutes:g} minutes ({self._problem}). What it holds "
            f"is untouched. Once it is back: {self._advice}"
        )

    def outlast(self, action: Callable[[], Result]) -> Result:
        """Do what reads and writes the storage; anew where it failed while the storage was away, once that is back.

        Raises:
            RunError: it was away for too long.
        """
        try:
            while True:
                try:
                    return action()
                except Exception as error:  # whatever a library makes of a file that is gone
                    if not (self.is_away or self._look()):
                        raise
                    log.debug("the storage is away: %s", error)
                while self.is_away or self._look():
                    if self.gave_up and self._stopped.wait(LEAVING):  # a job in the background may heed no interrupt
                        raise RunError(self.gave_up)
                    time.sleep(PAUSE)
        except KeyboardInterrupt:
            if self.gave_up:
                raise RunError(self.gave_up) from None
            raise

    def _watch(self) -> None:
        since = 0.0
        while not self._over.wait(PERIOD):
            problem, said = self._look(), self._hear()
            self._problem = problem
            if said and not problem:
                log.warning("%s", said)
            if not problem:
                if self.is_away:
                    log.warning("the storage is back after %.0f s: going on", time.monotonic() - since)
                self.is_away = False
                continue
            if not self.is_away:
                self.is_away, since, now = True, time.monotonic(), datetime.now()
                until = f"{now + timedelta(minutes=self._minutes):%H:%M}"
                log.warning("storage away since %s (%s), waiting until %s", f"{now:%H:%M}", problem, until)
            elif time.monotonic() - since > 60 * self._minutes:
                self._give_up()
                return

    def _look(self) -> str:
        """What is wrong with the storage, if anything. A look that hangs is left to itself."""
        problems = ["it does not answer"]

        def look() -> None:
            try:
                require_there(self._folder)
                problems.clear()
            except OSError as error:
                problems[0] = f"{self._folder.uri}: {error.strerror or error}"

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(ANSWER)
        return problems[0] if problems else ""

    def _give_up(self) -> None:
        self.gave_up = self.absence
        self._stop()
        self._stopped.set()
        if not self._over.wait(LEAVING):
            print(f"error: {self.gave_up}", file=sys.stderr, flush=True)
            os._exit(1)
