"""The newest content of a file, kept in a folder that may be away for a while: a thread delivers it, and tries again.

What changes while the folder is away is delivered once, as it is then.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable

from raymed.storage.availability import require_there
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two tries
LAST_WAIT = 120.0  # seconds for the folder to come back at the end


class Mirror:
    """Keeps the file `name` in a folder like a content that changes."""

    def __init__(self, folder: Folder, name: str, content: Callable[[], bytes]) -> None:
        self._folder, self._name, self._content = folder, name, content
        self._changed = threading.Condition()
        self._version = self._delivered = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def renew(self) -> None:
        """The content has changed. Returns at once."""
        with self._changed:
            self._version += 1
            if self._thread is None:
                atexit.register(self.close)
                self._closing = False
                self._thread = threading.Thread(target=self._run, name=f"copy of {self._name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until the newest content is delivered, or say that it is not."""
        atexit.unregister(self.close)
        with self._changed:
            thread, self._thread, self._closing = self._thread, None, True
            self._changed.notify_all()
        if thread is not None:
            thread.join(LAST_WAIT)
            if self._delivered < self._version:
                log.error("%s/%s is not up to date: the storage is still away", self._folder.uri, self._name)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._delivered < self._version or self._closing)
                version = self._version
                if self._delivered == version:
                    return
            self._deliver()
            self._delivered = version

    def _deliver(self) -> None:
        pause, since = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                if self._folder.is_local:  # or it would be written below a mount point
                    require_there(self._folder)
                self._folder.write(self._name, self._content())
                break
            except Exception as error:  # whatever a file system raises while it is away
                if pause == FIRST_PAUSE:
                    log.warning("%s cannot be copied to the storage: going on, and trying again (%s)", self._name, error)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        if pause > FIRST_PAUSE:
            log.warning("the storage took %s again after %.0f s", self._name, time.monotonic() - since)
