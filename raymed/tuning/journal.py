"""The file that a study lies in: entries with checksums, written by one process at a time, a copy beside the checkpoints.

The copy is what a new head starts from where the file lay on the old one's disk, and what takes over from a damaged file.
Where the file is not in the storage itself, nothing counts as written that is not in the copy, too.

A journal begins with a generation, a random name: two journals of one generation hold one search, up to different moments.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from raymed.compat.optuna import JournalOperation
from raymed.errors import UserError
from raymed.storage import disk
from raymed.storage.availability import UNWRITTEN, is_missing, once, wait_for
from raymed.storage.entries import check, checksum, entry_of, has_checksum, plain, to_line
from raymed.storage.folder import Folder, keep_names_above, make_folders
from raymed.storage.mirror import Mirror

log = logging.getLogger("raymed")

COPY = "study.journal.copy"
GENERATION = "generation"


class Journal(BaseJournalBackend):
    """Where Optuna keeps a study: a local file, copied to a folder after every entry. What is damaged is not believed."""

    def __init__(
        self,
        path: Path,
        folder: Folder,
        forgotten: Collection[str] = (),
        storage_minutes: float = 0.0,
        is_ours: Callable[[], bool] = lambda: False,
    ) -> None:
        """Open or create the file at `path`, whose copy lies in `folder`.

        Args:
            forgotten: generations that are over: a head that comes back with the record of one begins anew.
            storage_minutes: how long a write waits for a storage that is away.
            is_ours: whether this process still holds the search. Then another's copy in an object store is one of before,
                that was on its way when its head was cut off.

        Raises:
            UserError: the file cannot be read or written.
        """
        self._path, self._storage_minutes, self._is_ours = path, storage_minutes, is_ours
        self._lock = threading.Lock()  # held while entries are gathered
        self._is_gathering = False  # see `together`
        self._unwritten: list[bytes] = []  # the last lines: those that are gathered, or whose write failed
        self._torn = False  # a write failed, and may have left a part
        self._folder, self._mirror = folder, Mirror(folder, COPY, self._content)
        with self._told_what_to_do():
            mine, copy = _read_both(path, folder)
            record = _best(mine, copy, path, folder, forgotten)
            self._lines, self._length = record.lines, len(record.content)
            if not record.is_current:
                keep_names_above(path.parent)
                _write_whole(path, record.content)
            disk.keep(path.parent)  # who wrote the file may have been killed before its name was durable
            self._copied = 0 if folder.is_local else folder.size(COPY)
            if copy.lines != record.lines and not folder.is_local:
                self._copy()

    @property
    def generation(self) -> str:
        """Names this search: another one under the same name has another."""
        return _Record(self._lines).generation

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for place in range(1 + log_number_from, len(self._lines)):
            yield entry_of(self._lines[place])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines: list[bytes] = []
        for entry in logs:
            lines.append(to_line(entry, checksum((lines or self._lines)[-1])))
        self._lines += lines
        self._unwritten += lines
        if not self._is_gathering:
            self._write()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is appended within is written at its end, at once; see also `at_rest`.

        Raises:
            UserError: see `_write`.
        """
        with self._lock:
            self._is_gathering = True
            try:
                yield
            finally:
                self._is_gathering = False
                if self._unwritten:
                    self._write()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Within, nothing that belongs together is half written: another thread waits until it is."""
        with self._lock:
            yield

    def close(self) -> None:
        """Wait for the copy."""
        self._mirror.close()

    def _write(self) -> None:
        """Append to the file, durably. What cannot be written comes before what is appended later.

        Raises:
            UserError: it cannot be written, or another process has written it.
        """
        content, here = b"".join(self._unwritten), Folder.at(self._path.parent)
        wait_for(lambda: self._append(content), here, self._storage_minutes, self._waiting(str(self._path)))
        self._torn, self._unwritten = False, []
        self._length += len(content)
        if self._folder.is_local:
            self._mirror.renew()
        else:
            self._copy()

    def _copy(self) -> None:
        """Put the copy into an object store, before anybody acts on what was written: this machine may go with its disk.

        Raises:
            UserError: another process has put one there.
            StorageError: it was away for too long, or does not take it.
        """
        wait_for(self._send, self._folder, self._storage_minutes, self._waiting(f"{self._folder.uri}/{COPY}"))

    def _send(self) -> None:
        content, there = self._content(), self._folder.size(COPY)
        is_known = there == self._copied or (there and content.startswith(self._folder.read(COPY)))  # put, and not answered
        if not is_known and not self._is_ours():
            path = f"{self._folder.uri}/{COPY}"
            raise UserError(f"another process has written or removed {path}: this one ends. Run the command once at a time")
        self._folder.send(COPY, io.BytesIO(content))
        self._copied = len(content)

    def _waiting(self, what: str) -> Callable[[OSError], None]:
        """Says, once, that something is not written yet: the whole search stands still meanwhile."""

        return once(lambda error: log.warning(UNWRITTEN, what, error, self._storage_minutes))

    def _append(self, content: bytes) -> None:
        if not self._ends_where_it_did(content):
            raise UserError(f"another process has written {self._path}: this one ends. Run the command once at a time")
        self._torn = True
        disk.append(self._path, content, self._length)
        disk.keep(self._path)

    def _ends_where_it_did(self, content: bytes) -> bool:
        """Whether nothing lies behind what this process has written, but for what a failed try to write the content left."""
        size = disk.size(self._path)
        if not self._torn or size <= self._length:
            return size == self._length
        return content.startswith(disk.read(self._path)[self._length :])

    def _content(self) -> bytes:
        return disk.read(self._path)[: self._length]

    @contextmanager
    def _told_what_to_do(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the search's record {self._path} cannot be read or written: {error}. "
                "Free space, mend the permissions or reach the storage, and run the same command again"
            ) from error


def generations(path: Path, folder: Folder) -> set[str]:
    """Those of the file and of its copy, where they can be read."""
    return {record.generation for record in _read_both(path, folder) if record.lines}


@dataclass(frozen=True)
class _Record:
    """The lines of a file, a header first, up to the first that is not what was written.

    Attributes:
        is_current: whether the file holds these lines and nothing else.
        damage: what is wrong with the first line that is left out.
    """

    lines: list[bytes] = field(default_factory=list)
    is_current: bool = False
    damage: str = ""

    @classmethod
    def read(cls, content: bytes) -> _Record:
        lines = content.splitlines(keepends=True)
        if not lines or has_checksum(lines[0]):
            return cls._read(lines)
        return cls._upgraded(lines)

    @classmethod
    def new(cls, generation: str) -> _Record:
        return cls([to_line({GENERATION: generation})])

    @classmethod
    def _read(cls, lines: list[bytes]) -> _Record:
        for place, line in enumerate(lines):
            try:
                check(line, checksum(lines[place - 1]) if place else "")
                if not place and GENERATION not in entry_of(line):
                    raise ValueError("it begins no search's record")
            except ValueError as error:
                return cls(lines[:place], damage=f"line {place + 1}: {error}")
        return cls(lines, is_current=bool(lines))

    @classmethod
    def _upgraded(cls, lines: list[bytes]) -> _Record:
        """A record from before lines had checksums: what is an operation of Optuna's is believed."""
        record = cls.new(hashlib.blake2b(lines[0], digest_size=16).hexdigest())  # the same for the file and its copy
        operations = {int(operation) for operation in JournalOperation}
        for place, line in enumerate(lines):
            try:
                entry = plain(line)
                if not line.endswith(b"\n") or entry.get("op_code") not in operations or "worker_id" not in entry:
                    raise ValueError("it is cut off, or no operation of a study")
            except ValueError as error:
                return cls(record.lines if place else [], damage=f"line {place + 1}: {error}")
            record.lines.append(to_line(entry, checksum(record.lines[-1])))
        return record

    @property
    def generation(self) -> str:
        return str(entry_of(self.lines[0])[GENERATION])

    @property
    def content(self) -> bytes:
        return b"".join(self.lines)

    def begins(self, other: _Record) -> bool:
        """Whether the other record holds all of this one. A checksum stands for all lines up to its own."""
        count = len(self.lines)
        return not count or (count <= len(other.lines) and checksum(self.lines[-1]) == checksum(other.lines[count - 1]))


def _read_both(path: Path, folder: Folder) -> tuple[_Record, _Record]:
    """The file, and its copy. Their folders are made, so that one that is away is told from one that is empty."""
    make_folders(path.parent)
    folder.make()
    content = b"" if is_missing(Folder.at(path.parent), path.name) else disk.read(path)
    copied = b"" if is_missing(folder, COPY) else folder.read(COPY)
    record = _Record.read(content)
    return record, record if copied == content else _Record.read(copied)


def _best(mine: _Record, copy: _Record, path: Path, folder: Folder, forgotten: Collection[str]) -> _Record:
    """The file, or its copy where that holds more or something else; a line tells what was taken, and why."""
    if copy.lines and copy.generation in forgotten:
        copy = _Record()
    if mine.lines and mine.generation in forgotten:
        log.warning("the search's record %s is of a search that was forgotten (--resume never): left out", path)
        mine = _Record(copy.lines)
    is_enough = copy.begins(mine)
    best = mine if is_enough else copy
    if is_enough and not mine.damage:
        return mine if mine.lines else _Record.new(uuid.uuid4().hex)
    if mine.damage:
        wrong = f"is damaged ({mine.damage})"
    elif not mine.lines:
        wrong = "is missing"
    else:
        wrong = "lacks what its copy holds" if mine.begins(copy) else "is not that of the search in the storage"
    taken = "what it holds before that" if is_enough else f"its copy in {folder.uri}"
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.aside")
    if disk.exists(path) and (content := disk.read(path)):
        _write_whole(aside, content)
        wrong += f", and kept as {aside.name}"
    log.warning("the search's record %s %s: going on with %s, %d entries", path, wrong, taken, max(0, len(best.lines) - 1))
    return _Record(best.lines) if best.lines else _Record.new(uuid.uuid4().hex)


def _write_whole(path: Path, content: bytes) -> None:
    Folder.at(path.parent).write(path.name, content)
