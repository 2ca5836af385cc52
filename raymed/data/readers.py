"""Who reads prepared data: what a search began with stays, though others are prepared into the folder meanwhile.

A reader leaves a note of its own in the folder and renews it while it lives, as a lease's claim is. `prepare` keeps the
manifest, index and shards of data that have a reader, and removes them once it finds none. A note that was not renewed for
too long is looked at twice: its reader may just be back, from a storage that was full, or from standing still.
"""

from __future__ import annotations

import contextlib
import logging
import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raymed import clock
from raymed.data.prepared import MANIFEST
from raymed.errors import UserError
from raymed.storage import heartbeat, holder
from raymed.storage.folder import Folder
from raymed.storage.heartbeat import BACK, Heartbeat

log = logging.getLogger("raymed")

READERS = ".readers"
NOW = "now"  # a file that is written to learn what time it is there

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
    except (UserError, OSError) as error:
        log.warning("cannot note in %s that it is read (%s): prepare nothing into it until this job has ended", uri, error)
        yield
        return
    _read.add(name)
    note.heartbeat.start()
    try:
        yield
    finally:
        _read.discard(name)
        note.heartbeat.end()


def read_digests(folder: Folder) -> set[str]:
    """Digests of the data in a folder that somebody reads, an empty one where that cannot be told. The notes of those who
    have ended are removed."""
    notes = folder.child(READERS)
    digests, stopped = _look(notes)
    if unseen := [said for said in stopped.values() if holder.has_ended(said) is None]:
        where = unseen[0].get("host", "?")
        log.info("%s was read on %s, from where nothing is heard: looking again in %.0f s", folder.uri, where, BACK)
        clock.sleep(BACK)
        digests, stopped = _look(notes)
    for file in stopped:
        with contextlib.suppress(OSError):
            notes.delete(file)
    return digests


def digests_at_once(folder: Folder) -> set[str]:
    """As `read_digests`, by one look: a reader that is back from standing still is not waited for."""
    return _look(folder.child(READERS))[0]


def _look(notes: Folder) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """Digests of the data that somebody reads, and the notes of those who have stopped, with what they say."""
    digests, stopped = set[str](), dict[str, dict[str, Any]]()
    files = [name for name in notes.names() if name.endswith(".json")]
    now = _now(notes) if files else 0.0
    for file in files:
        try:
            said, age = heartbeat.read(notes, file), now - notes.modified(file)
        except FileNotFoundError:  # its reader has just ended
            continue
        except OSError:  # another account's
            said, age = {}, 0.0
        if heartbeat.has_stopped(said, age):
            stopped[file] = said
        else:
            digests.add(str(said.get("digest", "")))
    return digests, stopped


def _now(folder: Folder) -> float:
    """Seconds, by the clock of the folder's storage; none have passed where this account cannot ask it."""
    try:
        folder.write(NOW, b"")
        return folder.modified(NOW)
    except (UserError, OSError):
        return -math.inf


class _Note:
    """This process's note that it reads."""

    def __init__(self, data: Folder, digest: str) -> None:
        self._data, self._digest, self._file = data, digest, f"{READERS}/{uuid.uuid4().hex}.json"
        self.heartbeat = Heartbeat(data, self._file, self._renew)

    def write(self) -> bool:
        """Leave the note, and say whether the data are there: if not, nothing is written below their mount point."""
        if is_there := self._data.exists(MANIFEST):
            self._data.write(self._file, heartbeat.content(digest=self._digest))
        return is_there

    def _renew(self) -> bool:
        if not self.write():
            raise FileNotFoundError(MANIFEST)
        return True
