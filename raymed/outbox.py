"""What is to be written to a service that may be away for a while: kept on disk, delivered in order by a thread.

Whoever puts something in never waits for the service. What a killed process had not delivered is delivered by the next one,
so delivering the same entry twice must leave what delivering it once leaves.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raymed.errors import UserError

log = logging.getLogger("raymed")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two tries
MOST_WAITING = 100_000  # entries
LAST_WAIT = 600.0  # seconds for the service to come back at the end


class Outbox:
    """Delivers entries (plain values) one after the other, each until it succeeds."""

    def __init__(self, path: Path, service: str, deliver: Callable[[dict[str, Any]], None]) -> None:
        """Start with what an earlier process left in the file at `path`.

        Args:
            service: what a person calls it.
            deliver: raises `UserError` for what trying again would not mend, anything else while the service is away.
        """
        self._path, self._service, self._deliver = path, service, deliver
        self._waiting = deque(_whole_entries(path))
        path.write_text("".join(json.dumps(entry) + "\n" for entry in self._waiting), "utf-8")
        self._changed = threading.Condition()
        self._error: UserError | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"outbox of {service}", daemon=True)
        self._thread.start()

    def put(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry and return at once.

        Raises:
            UserError: an earlier entry cannot be delivered at all, far too many are waiting, or the file cannot be written.
        """
        with self._changed:
            self._check()
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(f"{self._service} has been away too long: {MOST_WAITING} entries wait in {self._path}")
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise UserError(
                    f"{self._path} cannot be written: {error}. "
                    "Free space or mend the permissions, and run the same command again"
                ) from error
            self._waiting.append(dict(entry))
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all is delivered, or say where the rest is kept.

        Raises:
            UserError: an entry cannot be delivered at all.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(LAST_WAIT)
        with self._changed:
            self._check()
            if self._waiting:
                log.error(
                    "%s is still away: %d entries wait in %s. The same command delivers them.",
                    self._service,
                    len(self._waiting),
                    self._path,
                )

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                entry = self._waiting[0]
            try:
                self._try(entry)
            except UserError as error:
                with self._changed:
                    self._error = error
                return
            with self._changed:
                self._waiting.popleft()
                if not self._waiting:
                    os.truncate(self._path, 0)

    def _try(self, entry: dict[str, Any]) -> None:
        pause, since = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                self._deliver(entry)
                break
            except UserError:
                raise
            except Exception as error:  # whatever a client library raises when its service is away
                if pause == FIRST_PAUSE:
                    log.warning("%s is away (%s): going on, and keeping what is for it", self._service, _line(error))
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        if pause > FIRST_PAUSE:
            log.warning("%s is back after %.0f s", self._service, time.monotonic() - since)


def _whole_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries in a file; a killed process may leave half of one at the end."""
    content = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(content.splitlines(), 1):
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError):
            log.warning("entry %d of %s is cut off or damaged: left out", number, path)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
