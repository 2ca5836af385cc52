"""What is to be written to a service that may be away for a while: kept on disk, delivered in order by a thread.

Whoever puts something in never waits for the service. What a killed process had not delivered is delivered by the next one,
so delivering the same entry twice must leave what delivering it once leaves. The file is only appended to: entries, and how
far they are delivered. What is delivered goes when nothing else is left, and at the next start, by a rename.

A machine may go with its disk. So while the service is away, what waits is copied to the storage, too.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raymed import clock
from raymed.background import UNTIL_WOKEN, Background
from raymed.errors import UserError
from raymed.storage import disk
from raymed.storage.availability import is_missing, wait_for
from raymed.storage.entries import from_line, has_checksum, plain, to_line
from raymed.storage.folder import Folder
from raymed.storage.mirror import Mirror

log = logging.getLogger("raymed")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two tries
MOST_WAITING = 100_000  # entries
LAST_WAIT = 600.0  # seconds for the service to come back at the end
BELIEVED = 300.0  # seconds after which an unclear answer is believed
DELIVERED = "delivered"  # in an entry of our own: how many bytes of the file are


class Refused(Exception):  # noqa: N818
    """The service answers, and will never take an entry as it is."""


class Denied(Exception):  # noqa: N818
    """The service answers, and does not take the credentials: it is waited for as one that is away."""


class Unclear(Exception):  # noqa: N818
    """The service works, and does not take an entry: for good, or just now."""


class Outbox:
    """Delivers entries (plain values) one after the other, each until it succeeds or is refused."""

    def __init__(
        self,
        path: Path,
        service: str,
        deliver: Callable[[dict[str, Any]], None],
        storage_minutes: float = 0.0,
        copy: Folder | None = None,
    ) -> None:
        """Start with what an earlier process left in the file at `path`, or, on another machine, in its copy.

        Args:
            service: what a person calls it.
            deliver: raises `Refused` for an entry that the service will never take, which is set aside with a line;
                `Unclear` for one that is to be set aside if that stays so; `UserError` where everything must stop; `Denied`,
                or anything else, while the service takes nothing.
            storage_minutes: how long an entry waits for a storage that is away.
            copy: where the file is copied to while the service is away, under the same name.

        Raises:
            UserError: the file cannot be written; what it holds stays.
        """
        self._path, self._service, self._deliver, self._storage_minutes = path, service, deliver, storage_minutes
        self._waiting: deque[tuple[dict[str, Any], int]] = deque()  # each with where it ends in the file
        self._length = 0
        folder = Folder.at(path.parent)
        is_new = wait_for(lambda: is_missing(folder, path.name), folder, storage_minutes)
        if is_new and copy is not None:
            there = wait_for(lambda: _copied(path, copy), copy, storage_minutes)
        else:
            there = b"" if is_new else wait_for(lambda: disk.read(path), folder, storage_minutes)
        left, is_clean = _left(there, path)
        content = b""
        for entry in left:
            content += to_line(entry)
            self._waiting.append((entry, len(content)))
        self._length = len(content)
        if not is_clean or is_new:
            wait_for(lambda: folder.put(path.name, content), folder, storage_minutes)
        self._lock = threading.Lock()
        self._copy = Mirror(copy, path.name, self._content) if copy is not None else None
        self._error: UserError | None = None
        self._closing = False
        self._refused = 0
        self._unclear_since: float | None = None
        self._pause, self._away_since = FIRST_PAUSE, 0.0
        self._denied: bool | None = None  # whether it was said that credentials are refused, or that it is away
        self._is_copied = bool(left)  # what is delivered meanwhile must not stay in the copy
        self._courier = Background(f"outbox of {service}", self._step)
        self._courier.start()

    def put(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry, durably, and return at once.

        Raises:
            UserError: an earlier entry cannot be delivered at all, far too many are waiting, or the file cannot be written.
        """
        with self._lock:
            self._check()
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(
                    f"{self._service} has taken nothing for too long: {MOST_WAITING} entries wait in {self._path}"
                )
            line, folder = to_line(entry), Folder.at(self._path.parent)
            wait_for(lambda: self._append(line, durably=True), folder, self._storage_minutes)
            self._waiting.append((dict(entry), self._length))
        self._courier.wake()

    def close(self) -> None:
        """Wait until all is delivered, or say where the rest is kept.

        Raises:
            UserError: an entry cannot be delivered at all.
        """
        self._closing = True
        self._courier.wake()
        self._courier.join(LAST_WAIT)
        if self._copy is not None:
            if self._waiting:
                self._is_copied = True
                self._copy.renew()
            self._copy.close()
        with self._lock:
            self._check()
            if self._waiting:
                log.error(
                    "%s has not taken %d entries, which wait in %s. The same command delivers them.",
                    self._service,
                    len(self._waiting),
                    self._path,
                )

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _append(self, line: bytes, durably: bool) -> None:
        """Write behind the last whole line; what a failed write left is cut off."""
        disk.append(self._path, line, self._length)
        if durably:
            disk.keep(self._path)
        self._length += len(line)

    def _step(self) -> float | None:
        """Deliver the first entry that waits."""
        with self._lock:
            if not self._waiting:
                return None if self._closing else UNTIL_WOKEN
            entry, end = self._waiting[0]
        try:
            self._deliver(entry)
        except UserError as error:
            self._error = error
            return None
        except Refused as error:
            self._set_aside(entry, error)
        except Exception as error:  # whatever a client library raises when its service is away
            if not self._is_refusal(error):
                return self._later(error)
            self._set_aside(entry, error)
        self._unclear_since = None
        if self._pause > FIRST_PAUSE:
            log.warning("%s is back after %.0f s", self._service, clock.seconds() - self._away_since)
        self._pause = FIRST_PAUSE
        with self._lock:
            self._waiting.popleft()
            with contextlib.suppress(OSError):  # it is delivered once more, then
                self._note_delivered(end)
        if self._is_copied and not self._waiting and self._copy is not None:
            self._is_copied = False
            self._copy.renew()
        return 0.0

    def _is_refusal(self, error: Exception) -> bool:
        """Whether the first entry that waits got an unclear answer for so long, and no other one, that it is believed."""
        if not isinstance(error, Unclear):
            self._unclear_since = None
            return False
        if self._unclear_since is None:
            self._unclear_since = clock.seconds()
        return clock.seconds() - self._unclear_since >= BELIEVED

    def _later(self, error: Exception) -> float:
        pause = self._pause
        if pause == FIRST_PAUSE:
            self._away_since, self._denied = clock.seconds(), None
        if self._denied is not (denied := isinstance(error, Denied)):
            self._denied = denied
            if denied:
                log.warning(
                    "%s refuses the credentials (%s): going on, and keeping what is for it", self._service, _line(error)
                )
            else:
                log.warning("%s is away (%s): going on, and keeping what is for it", self._service, _line(error))
        self._pause = min(2 * pause, LONGEST_PAUSE)
        if self._copy is not None:
            self._is_copied = True
            self._copy.renew()
        return pause

    def _content(self) -> bytes:
        """What the copy is to hold: nothing once all was delivered, whatever is put in since."""
        with self._lock:
            return disk.read(self._path) if self._is_copied else b""

    def _note_delivered(self, end: int) -> None:
        if self._waiting:
            self._append(to_line({DELIVERED: end}), durably=False)
        else:
            disk.append(self._path, b"", 0)
            self._length = 0

    def _set_aside(self, entry: dict[str, Any], error: Exception) -> None:
        aside = self._path.with_name(f"{self._path.stem}.refused{self._path.suffix}")
        with contextlib.suppress(OSError):
            if not disk.exists(aside):
                disk.write(aside, b"")
            disk.append(aside, to_line(entry), disk.size(aside))
        if not self._refused:
            log.error("%s refuses an entry for good (%s): it is set aside in %s", self._service, _line(error), aside)
        self._refused += 1


def _copied(path: Path, copy: Folder) -> bytes:
    """What the copy of a file holds."""
    if not copy.exists(path.name) or not (content := copy.read(path.name)):
        return b""
    log.info("what MLflow has not got yet begins with its copy in %s", copy.uri)
    return content


def _left(content: bytes, path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The entries of a file that are not delivered, and whether it holds these alone, each whole and with a checksum."""
    left: list[tuple[dict[str, Any], int]] = []
    end, is_clean = 0, True
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        end += len(line)
        try:
            entry = from_line(line) if has_checksum(line) else _before_checksums(line)
        except ValueError as error:
            log.warning("entry %d of %s is left out: %s", number, path, error)
            is_clean = False
            continue
        is_clean &= has_checksum(line) and DELIVERED not in entry
        if DELIVERED in entry:
            left = [(each, its_end) for each, its_end in left if its_end > entry[DELIVERED]]
        else:
            left.append((entry, end))
    return [entry for entry, _ in left], is_clean


def _before_checksums(line: bytes) -> dict[str, Any]:
    """An entry that an earlier version wrote."""
    entry = plain(line)
    if "checksum" in entry or not line.endswith(b"\n"):
        raise ValueError("it is cut off or damaged")
    return entry


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
