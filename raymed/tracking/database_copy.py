"""A database's copy in a storage, in parts that are named by their digests: only those that changed are sent.

A night adds some hundred bytes for each metric, and a bucket keeps what was overwritten: the whole file every half minute
would be a thousand times the database. A list, which is written last, says which parts are the database; those it no longer
names go after that. So a copy that is cut off leaves the one before it.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

from raymed.errors import UserError
from raymed.storage.folder import Folder

LIST, PARTS = "database.json", "parts"
WHOLE = "mlflow.db"  # a copy in one piece, of an earlier raymed
PART_BYTES = 64 * 1024  # a page of SQLite has 4 KiB; of an index that grows everywhere, fewer bytes and more requests
AT_ONCE = 8


class DatabaseCopy:
    """The copy in a folder, which one process writes at a time."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._parts = folder, folder.child(PARTS)
        self._there: set[str] | None = None  # names of parts in the storage, from the first writing on

    def exists(self) -> bool:
        return self._folder.exists(LIST) or self._folder.exists(WHOLE)

    def read(self) -> bytes:
        """The database.

        Raises:
            UserError: a part is missing or damaged.
            FileNotFoundError: there is none.
        """
        if not self._folder.exists(LIST):
            return self._folder.read(WHOLE)
        try:
            names: list[str] = json.loads(self._folder.read(LIST))["parts"]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                parts = list(pool.map(self._parts.read, names))
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(str(error)) from error
        for name, part in zip(names, parts, strict=True):
            if _digest(part) != name:
                raise self._damaged(f"{PARTS}/{name} is another file")
        return b"".join(parts)

    def write(self, content: bytes) -> int:
        """Make the copy a copy of this database; returns how many bytes that took.

        Raises:
            UserError, OSError: the storage cannot be written; the copy is what it was.
        """
        there = set(self._parts.names()) if self._there is None else self._there
        self._there = None  # where this is cut off, it is not known
        parts = [content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES)]
        named = {_digest(part): part for part in parts}
        new = {name: part for name, part in named.items() if name not in there}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self._parts.write(name, new[name]), new))
        self._folder.write(LIST, json.dumps({"parts": [_digest(part) for part in parts]}).encode())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._parts.delete, there - named.keys()))
        self._there = set(named)
        return sum(map(len, new.values()))

    def _damaged(self, how: str) -> UserError:
        return UserError(
            f"the copy of MLflow's database in {self._folder.uri} is damaged ({how}). A bucket that keeps versions has the "
            "one before it; or move the folder away to begin with an empty database"
        )


def _digest(part: bytes) -> str:
    return hashlib.blake2b(part, digest_size=16).hexdigest()
