"""Who reads prepared data: what a search began with stays, though others are prepared into the folder meanwhile.

A reader leaves a note of its own in the folder and renews it while it lives, as a lease's claim is. `prepare` keeps the
manifest, index and shards of data that have a reader, and removes them once it finds none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from raymed.background import Background
from raymed.errors import UserError
from raymed.storage import holder
from raymed.storage.availability import require_there
from raymed.storage.folder import Folder
from raymed.storage.lease import BEAT, LEAVING, is_over, read_claim

log = logging.getLogger("raymed")

READERS = ".readers"

_read: set[tuple[str, str]] = set()  # by this process: folder and digest


@contextmanager
def reading(uri: str, digest: str) -> Iterator[None]:
    """Keep the data of that digest in a folder meanwhile, whatever is prepared into it. Where no note can be written, a line
    says so, and nothing is kept. A process that reads them already may say so again within."""
    folder = Folder.at(uri)
    note, name = _Note(folder, digest), (folder.uri, digest)
    if name in _read:
        yield
        return
    try:
        note.write()
    except UserError as error:
        log.info("prepare nothing into %s until this has ended: that it is read cannot be noted there (%s)", uri, error)
        yield
        return
    _read.add(name)
    note.start()
    try:
        yield
    finally:
        _read.discard(name)
        note.end()


def read_digests(folder: Folder) -> set[str]:
    """Digests of the data in a folder that somebody reads. The notes of those who have ended are removed."""
    notes, digests = folder.child(READERS), set[str]()
    files = [file for file in notes.names() if file.endswith(".json")]
    now = _now(notes) if files else 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # its reader has just ended
            claim, age = read_claim(notes, file), now - notes.modified(file)
            if is_over(claim, age):
                notes.delete(file)
            else:
                digests.add(str(claim.get("digest")))
    return digests


def _now(folder: Folder) -> float:
    """Seconds, by the clock of the folder's storage."""
    name = f"{uuid.uuid4().hex}.now"
    folder.write(name, b"")
    try:
        return folder.modified(name)
    finally:
        folder.delete(name)


class _Note:
    """This process's note that it reads."""

    def __init__(self, folder: Folder, digest: str) -> None:
        self._folder, self._digest, self._file, self._is_over = (
            folder.child(READERS),
            digest,
            f"{uuid.uuid4().hex}.json",
            False,
        )
        self._heart = Background(f"note in {folder.uri}", self._beat, BEAT)

    def write(self) -> None:
        self._folder.write(self._file, json.dumps(holder.myself() | {"digest": self._digest}).encode())

    def start(self) -> None:
        self._heart.start()

    def end(self) -> None:
        self._is_over = True
        self._heart.wake()
        self._heart.join(LEAVING)

    def _beat(self) -> float | None:
        """Renew the note until it is over, and remove it then; while the storage is away, neither."""
        if self._is_over:
            with contextlib.suppress(Exception):
                self._folder.delete(self._file)
            return None
        with contextlib.suppress(Exception):
            require_there(self._folder)  # nothing is to be written below its mount point
            self.write()
        return BEAT
