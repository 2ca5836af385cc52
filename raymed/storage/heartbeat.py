"""A file that says that its process lives: it is renewed while it does, and a process that stops renewing it has ended.

A file's age is the difference of two times that the storage noted itself, so that clocks of machines do not matter; that of
a process on this machine ends with the process, where Linux tells which process it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any

from raymed.background import Background
from raymed.storage import holder
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

BEAT, EXPIRES = 15.0, 60.0  # seconds between two renewals; age of a file whose process is taken for dead
BACK = BEAT + 5.0  # seconds in which a process that could not write, or stood still, renews its file once it is back
AGAIN = 3.0  # seconds after a renewal that failed: others may soon take this process for dead
LEAVING = 10.0  # seconds for the file to go; a storage that hangs is not waited for, and the file expires


class Heartbeat:
    """Renews a file in the background until it is over, and removes it then."""

    def __init__(self, folder: Folder, file: str, renew: Callable[[], bool], mark: str = "") -> None:
        """
        Args:
            renew: writes the file again, and says whether it still counts; whatever it raises, it is called again soon.
            mark: a file that goes with it, if any.
        """
        self._folder, self._file, self._renew, self._mark = folder, file, renew, mark
        self._background = Background(f"heartbeat {file} in {folder.uri}", self._beat, BEAT)
        self.is_over = False

    def start(self) -> None:
        self._background.start()

    def end(self) -> None:
        self.is_over = True
        self._background.wake()
        self._background.join(LEAVING)

    def _beat(self) -> float | None:
        if not self.is_over:
            try:
                if self._renew():
                    return BEAT
            except Exception as error:  # whatever a file system raises while it is away
                log.debug("%s in %s could not be renewed: %s", self._file, self._folder.uri, error)
                return AGAIN
        with contextlib.suppress(Exception):  # a storage that is away: the file expires
            self._folder.delete(self._file)
            if self._mark:
                self._folder.delete(self._mark)
        return None


def content(**more: Any) -> bytes:
    """What this process writes of itself, and more."""
    return json.dumps(holder.myself() | more).encode()


def read(folder: Folder, file: str) -> dict[str, Any]:
    """What a process wrote of itself, as `holder.myself` says it."""
    try:
        return dict(json.loads(folder.read(file)))
    except (ValueError, TypeError):
        return {}  # damaged: only its age counts


def has_stopped(said: dict[str, Any], age: float) -> bool:
    """Whether the process that wrote a file has ended, as far as that can be seen, or was not seen for too long.

    Args:
        said: what it wrote.
        age: seconds since it was written.
    """
    ended = holder.has_ended(said)
    return age > EXPIRES if ended is None else ended
