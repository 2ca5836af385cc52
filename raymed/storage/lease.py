"""A lease on a name in a storage: one process holds it at a time, on whatever machine, and a heartbeat shows that it lives.

Whoever wants it leaves a claim, a file of its own, and only then looks for others: of two that come at once, at least one
sees the other. This takes no more of a storage than that what was written is listed, which file systems, NFS and S3 do. A
claim's age is the difference of two times that the storage noted itself, so that clocks of machines do not matter; the claim
of a process on this machine ends with the process, where Linux tells which process it was. Who takes over from a claim has
the next term: of two that hold the lease, because the first was cut off and came back, the first ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raymed import clock
from raymed.background import Background
from raymed.errors import UserError
from raymed.storage import holder
from raymed.storage.availability import require_there
from raymed.storage.folder import Folder

log = logging.getLogger("raymed")

CLAIMS = ".leases"
BEAT, EXPIRES = 15.0, 60.0  # seconds between two heartbeats; age of a claim whose holder is taken for dead
LEAVING = 10.0  # seconds for the claim to go; a storage that hangs is not waited for, and the claim expires

_held: set[str] = set()  # by this process


@contextmanager
def lease(storage: Folder, name: str) -> Iterator[None]:
    """Hold the lease on a name; a process that holds it already may take it again within.

    Raises:
        UserError: another process holds it, or the storage cannot be written.
    """
    folder = storage.child(f"{CLAIMS}/{name}")
    if folder.uri in _held:
        yield
        return
    claim = _Claim(folder, name)
    claim.make()
    _held.add(folder.uri)
    try:
        claim.start()
        yield
    finally:
        _held.discard(folder.uri)
        claim.end()


class _Claim:
    """This process's claim on a lease."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name, self._file, self._term = folder, name, f"{uuid.uuid4().hex}.json", 0
        self._is_over = False
        self._rivals: dict[str, float] = {}
        self._heart = Background(f"lease on {name}", self._beat, BEAT)

    def make(self) -> None:
        """Leave the claim, and see whether another one counts.

        Raises:
            UserError: one does, or it took so long that others may take this process for dead.
        """
        begun = clock.uptime()
        self._write()
        try:
            now = self._folder.modified(self._file)
            for file in self._others():
                try:
                    other, age = read_claim(self._folder, file), now - self._folder.modified(file)
                except FileNotFoundError:
                    if self._folder.exists(self._file):
                        continue  # its holder has ended
                    raise  # the storage is away
                if is_over(other, age):
                    self._term = max(self._term, _term(other) + 1)
                    self._write()  # before the other goes: the term outlives it
                    with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                        self._folder.delete(file)
                    continue
                who = f"{other.get('pid')} on {other.get('host')}, last seen {max(0, age):.0f} s ago"
                raise UserError(
                    f"{self._name!r} is running in another process ({who}): wait for it, or stop it. "
                    f"If that machine is gone, try again in {EXPIRES:.0f} s"
                )
            if (took := clock.uptime() - begun) > EXPIRES / 2:
                raise UserError(
                    f"{self._name!r} has not begun: to look for other processes took {took:.0f} s, in which one may have "
                    "taken this one for dead. Give the same command again"
                )
        except BaseException:
            with contextlib.suppress(OSError):
                self._folder.delete(self._file)
            raise

    def start(self) -> None:
        self._heart.start()

    def end(self) -> None:
        self._is_over = True
        self._heart.wake()
        self._heart.join(LEAVING)

    def _beat(self) -> float | None:
        """Renew the claim until it is over, and remove it then.

        Where another process has taken over, this one ends at once: a checkpoint, or a word to MLflow, would be among that
        one's by now.
        """
        if not self._is_over and self._is_mine():
            return BEAT
        with contextlib.suppress(Exception):  # a storage that is away: the claim expires
            self._folder.delete(self._file)
        return None

    def _is_mine(self) -> bool:
        """Renew the claim; whether the lease is still this process's. Where it is not, the process ends."""
        try:
            require_there(self._folder)  # or the storage is away, and nothing is to be written below its mount point
            is_there, before = self._folder.exists(self._file), self._rivals
            self._rivals = {file: self._folder.modified(file) for file in self._others()}
            # one that only looked, or was killed while it did, renews nothing
            renewed = [file for file, at in self._rivals.items() if before.get(file, at) != at]
            has_rival = any(_term(read_claim(self._folder, file)) >= self._term for file in renewed)
            if is_there and not has_rival:
                self._write()
                return True
        except Exception as error:  # whatever a file system raises while it is away
            log.debug("the lease on %s could not be renewed: %s", self._name, error)
            return True
        if not self._is_over:
            holder.end(
                1, f"error: another process has taken {self._name} over, because this one was not seen for too long: it ends"
            )
        return False

    def _write(self) -> None:
        self._folder.write(self._file, json.dumps(holder.myself() | {"term": self._term}).encode())

    def _others(self) -> list[str]:
        return [file for file in self._folder.names() if file.endswith(".json") and file != self._file]


def read_claim(folder: Folder, file: str) -> dict[str, Any]:
    """What a process wrote of itself, as `holder.myself` says it."""
    try:
        return dict(json.loads(folder.read(file)))
    except (ValueError, TypeError):
        return {}  # damaged: only its age counts


def _term(other: dict[str, Any]) -> int:
    """How often the lease was taken over before; claims of an earlier raymed do not say."""
    return int(other.get("term", 0))


def is_over(claim: dict[str, Any], age: float) -> bool:
    """Whether the process that wrote a claim has ended, as far as that can be seen, or was not seen for too long.

    Args:
        age: seconds since it was written.
    """
    ended = holder.has_ended(claim)
    return age > EXPIRES if ended is None else ended
