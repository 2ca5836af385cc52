"""The file that a study lies in: whole lines, one writer at a time, and a copy beside the search's checkpoints.

The copy is what a new head starts from where the file lay on the old one's disk, and what takes over from a damaged file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend

from raymed.errors import UserError
from raymed.storage import Folder

log = logging.getLogger("raymed")

COPY = "study.journal.copy"


class Journal(JournalFileBackend):
    """Optuna's journal file, copied to a folder after every entry."""

    def __init__(self, path: Path, folder: Folder) -> None:
        """Open or create the file at `path`, whose copy lies in `folder`; what is damaged is replaced by the copy."""
        self._folder = folder
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path, folder)
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise UserError(
                f"the search's record {self._file_path} cannot be written: {error}. "
                "Free space or mend the permissions, and run the same command again"
            ) from error
        self._folder.write(COPY, Path(self._file_path).read_bytes())


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a search's journal for this process; a process that is killed lets go of it.

    Raises:
        UserError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.held", timeout=0):
            Path(f"{path}.lock").unlink(missing_ok=True)  # Optuna's own lock, left by a killed process
            yield
    except Timeout as error:
        raise UserError(f"this search is running in another process, which holds {path}: wait for it, or stop it") from error


def _mend(path: Path, folder: Folder) -> None:
    content = path.read_bytes() if path.is_file() else b""
    copy = folder.read(COPY) if folder.exists(COPY) else b""
    whole = content[: _whole(content)]
    saved = copy[: _whole(copy)]
    if len(saved) > len(whole):
        log.warning("the search's record %s is missing or damaged: going on with its copy in %s", path, folder.uri)
        path.write_bytes(saved)
    elif len(whole) < len(content):
        log.warning("the last entry of the search's record %s was cut off while it was written: left out", path)
        path.write_bytes(whole)


def _whole(content: bytes) -> int:
    """Length of the entries up to the first that is damaged."""
    length = 0
    for line in content.splitlines(keepends=True):
        try:
            json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        length += len(line)
    return length
