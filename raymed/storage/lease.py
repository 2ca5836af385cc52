"""A lease on a name in a storage: one process holds it at a time, on whatever machine, and a heartbeat shows that it lives.

Whoever wants it leaves a claim, a file of its own, and only then looks for others: of two that come at once, at least one
sees the other. This takes no more of a storage than that what was written is listed, which file systems, NFS and S3 do. A
claim that was not renewed for too long is looked at twice: its process may just be back, from a storage that was full, or
from standing still. Who holds the lease later has a later term, the storage's time: of two that hold it, because the first
was cut off and came back, the first ends.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymed import clock
from raymed.errors import UserError
from raymed.storage import heartbeat, holder
from raymed.storage.availability import is_missing, require_there
from raymed.storage.folder import Folder, keep_names_above, marked
from raymed.storage.heartbeat import BACK, EXPIRES, Heartbeat

log = logging.getLogger("raymed")

CLAIMS, MARK = ".leases", ".mark"
STALE = 30 * 86400.0  # seconds after which the mark of a process that was killed goes; no lease is held for so long

_held: dict[str, _Claim] = {}  # by this process, by folder


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
    _held[folder.uri] = claim
    try:
        claim.heartbeat.start()
        with marked(storage, f"{CLAIMS}/{name}/{claim.mark}"):
            yield
    finally:
        _held.pop(folder.uri, None)
        claim.heartbeat.end()


def holds(storage: Folder, name: str) -> bool:
    """Whether this process has the lease on a name, and nobody has taken it over since.

    Raises:
        OSError: the storage does not answer, or is not there.
    """
    folder = storage.child(f"{CLAIMS}/{name}")
    return folder.uri in _held and _held[folder.uri].is_there


class _Claim:
    """This process's claim on a lease."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name, self._file, self._term = folder, name, f"{uuid.uuid4().hex}.json", 0
        self._rivals: dict[str, float] = {}
        self.mark = f"{uuid.uuid4().hex}{MARK}"  # see `marked`
        self.heartbeat = Heartbeat(folder, self._file, self._renew, self.mark if folder.is_local else "")

    def make(self) -> None:
        """Leave the claim, and see whether another one counts.

        Raises:
            UserError: one does, or it took so long that others may take this process for dead.
        """
        begun = clock.uptime()
        self._write()
        try:
            if self._folder.is_local:
                keep_names_above(Path(self._folder.path))
            stopped = self._stopped()
            if unseen := [other for other in stopped.values() if holder.has_ended(other) is None]:
                where = unseen[0].get("host", "?")
                log.info("%s was held on %s, from where nothing is heard: looking again in %.0f s", self._name, where, BACK)
                clock.sleep(BACK)  # without a word: a holder that is back ends where a claim beside its own is renewed
                begun += BACK
                stopped = self._stopped()
                if not stopped:
                    self._write()  # it has left meanwhile, and this claim is old
            if self._folder.is_local:
                self._remove_marks()
            for file, other in stopped.items():
                self._term = max(self._term, _term(other) + 1)
                self._write()  # before the other goes: the term outlives it
                with contextlib.suppress(FileNotFoundError):  # somebody else was faster
                    self._folder.delete(file)
            if (took := clock.uptime() - begun) > EXPIRES / 2:
                raise UserError(
                    f"{self._name!r} has not begun: to look for other processes took {took:.0f} s, in which one may have "
                    "taken this one for dead. Give the same command again"
                )
        except BaseException:
            with contextlib.suppress(OSError):
                self._folder.delete(self._file)
            raise

    @property
    def is_there(self) -> bool:
        """Whether nobody has removed it: who takes over does.

        Raises:
            OSError: the storage does not answer, or is not there.
        """
        return not is_missing(self._folder, self._file)

    def _stopped(self) -> dict[str, dict[str, Any]]:
        """The claims whose processes have stopped, and what those wrote of themselves.

        Raises:
            UserError: one has not, or this process's claim is not there.
        """
        stopped, files = dict[str, dict[str, Any]](), self._folder.names()
        if self._file not in files:
            raise UserError(
                f"{self._name!r} has not begun: the storage was away, or another process has taken this one for dead. "
                "Give the same command again"
            )
        now = self._folder.modified(self._file)
        self._term = max(self._term, int(now))  # beyond that of any holder before, though its claim is gone
        for file in self._claims_of_others(files):
            try:
                other, age = heartbeat.read(self._folder, file), now - self._folder.modified(file)
            except FileNotFoundError:
                if self._folder.exists(self._file):
                    continue  # its holder has ended
                raise  # the storage is away
            if not heartbeat.has_stopped(other, age):
                who = f"{other.get('pid')} on {other.get('host')}, last seen {max(0, age):.0f} s ago"
                raise UserError(
                    f"{self._name!r} is running in another process ({who}): wait for it, or stop it. "
                    f"If that machine is gone, try again in {EXPIRES:.0f} s"
                )
            stopped[file] = other
        return stopped

    def _remove_marks(self) -> None:
        """Those that killed processes left. One that was only cut off has its own until it is back, and ends."""
        with contextlib.suppress(OSError):  # the next process removes them
            now = self._folder.modified(self._file)
            for mark in (file for file in self._folder.names() if file.endswith(MARK)):
                if now - self._folder.modified(mark) > STALE:
                    self._folder.delete(mark)

    def _renew(self) -> bool:
        """Renew the claim, and say whether the lease is still this process's.

        Where another process has taken over, this one ends at once: a checkpoint, or a word to MLflow, would be among that
        one's by now.
        """
        if self._is_elsewhere:
            return self._end(f"error: the storage that {self._name} began in is away, another one is in its place: it ends")
        require_there(self._folder)  # or the storage is away, and nothing is to be written below its mount point
        is_there, files = self.is_there, self._folder.names()
        rivals = {file: self._folder.modified(file) for file in self._claims_of_others(files)}
        # one that only looked, or was killed while it did, renews nothing
        renewed = [file for file, at in rivals.items() if self._rivals.get(file, at) != at]
        has_rival = any(_term(heartbeat.read(self._folder, file)) >= self._term for file in renewed)
        self._rivals = rivals
        if is_there and not has_rival:
            self._write()
            return True
        return self._end(
            f"error: another process has taken {self._name} over, because this one was not seen for too long: it ends"
        )

    @property
    def _is_elsewhere(self) -> bool:
        """Whether a lease of this name was held in what is there, but not by this process: it, or another one, began below
        the mount point of a storage that was away."""
        return self._folder.is_local and not self._has_own() and self._folder.exists() and not self._has_own()

    def _has_own(self) -> bool:
        return self._folder.exists(self.mark) or self._folder.exists(self._file)

    def _end(self, reason: str) -> bool:
        if not self.heartbeat.is_over:
            holder.end(1, reason)
        return False

    def _write(self) -> None:
        self._folder.write(self._file, heartbeat.content(term=self._term))

    def _claims_of_others(self, files: list[str]) -> list[str]:
        return [file for file in files if file.endswith(".json") and file != self._file]


def _term(other: dict[str, Any]) -> int:
    """When the lease was taken, by the storage's clock, in seconds; claims of an earlier raymed say less."""
    return int(other.get("term", 0))
