"""The newest content of a file, kept in a folder that may be away for a while: a thread delivers it, and tries again.

What changes while the folder is away is delivered once, as it is then.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable

from raymed import clock
from raymed.background import UNTIL_WOKEN, Background
from raymed.storage.availability import require_there
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two tries
LAST_WAIT = 120.0  # seconds for the folder to come back at the end


class Mirror:
    """Keeps the file `name` in a folder like a content that changes."""

    def __init__(self, folder: Folder, name: str, content: Callable[[], bytes]) -> None:
        self._folder, self._name, self._content = folder, name, content
        self._version = self._delivered = 0
        self._closing = False
        self._courier: Background | None = None
        self._pause, self._away_since = FIRST_PAUSE, 0.0

    def renew(self) -> None:
        """The content has changed. Returns at once."""
        self._version += 1
        if self._courier is None:
            atexit.register(self.close)
            self._closing = False
            self._courier = Background(f"copy of {self._name}", self._step)
            self._courier.start()
        self._courier.wake()

    def close(self) -> None:
        """Wait until the newest content is delivered, or say that it is not."""
        atexit.unregister(self.close)
        courier, self._courier, self._closing = self._courier, None, True
        if courier is not None:
            courier.wake()
            courier.join(LAST_WAIT)
            if self._delivered < self._version:
                log.error("%s/%s is not up to date: the storage is still away", self._folder.uri, self._name)

    def _step(self) -> float | None:
        version = self._version
        if self._delivered == version:
            return None if self._closing else UNTIL_WOKEN
        try:
            if self._folder.is_local:  # or it would be written below a mount point
                require_there(self._folder)
            self._folder.write(self._name, self._content())
        except Exception as error:  # whatever a file system raises while it is away
            return self._later(error)
        if self._pause > FIRST_PAUSE:
            log.warning("the storage took %s again after %.0f s", self._name, clock.seconds() - self._away_since)
        self._pause, self._delivered = FIRST_PAUSE, version
        return 0.0

    def _later(self, error: Exception) -> float:
        pause = self._pause
        if pause == FIRST_PAUSE:
            self._away_since = clock.seconds()
            log.warning("%s cannot be copied to the storage: going on, and trying again (%s)", self._name, error)
        self._pause = min(2 * pause, LONGEST_PAUSE)
        return pause
