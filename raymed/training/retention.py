"""Which of a run's checkpoints stay: the two newest, and the best. The rest is removed, and so is what kills left behind.

Each of the two newest may name another best: the search's record may not know of the newer one yet.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from raymed.storage import disk
from raymed.storage.folder import Folder
from raymed.training.checkpoint import Checkpoints, checkpoint_names, is_sealed

NEWEST = 2  # checkpoints kept besides the best: the newest may be torn by a power cut


class Retention:
    """One run's checkpoints, as its first worker keeps them.

    It removes what it found and what it saved, and nothing else. Where a machine is cut off, the run goes on elsewhere while
    a worker of before still saves, and neither may take from the other what it is about to complete.
    """

    def __init__(self, run: Folder, keep_all: bool, found: Checkpoints, model: str) -> None:
        """Start from the checkpoint that the run goes on from, if any.

        Args:
            keep_all: remove nothing but what is torn.
            found: what was there.
            model: name of the checkpoint that holds the best model; empty where there is none.
        """
        self._run, self._newest = run, [(found.newest, model)]
        self._keep_all, self._torn, self._own = keep_all, {*found.torn}, {*found.names}

    def add(self, name: str, model: str) -> None:
        """A checkpoint is durable: those that are not needed any more are removed."""
        self._newest = [*self._newest, (name, model)][-NEWEST:]
        self._own.add(name)
        needed = {kept for pair in self._newest for kept in pair}
        removable = self._torn if self._keep_all else self._own
        with suppress(OSError):  # the next time removes them
            _remove(self._run, removable.intersection(checkpoint_names(self._run)) - needed)


def sweep(run: Folder, models: set[str]) -> None:
    """Remove of a finished run's checkpoints what a kill left, or a power cut brought back.

    Args:
        models: names of checkpoints that hold a best model.
    """
    with suppress(OSError):  # the same command does it once more
        names = checkpoint_names(run)  # once: the storage may go away for a moment between two looks
        newest = [name for name in names if is_sealed(run, name)][-NEWEST:]
        _remove(run, {*names} - {*newest} - models)
        if run.is_local:
            disk.keep(Path(run.path))  # nobody looks any more, should what was removed come back


def _remove(run: Folder, names: set[str]) -> None:
    for name in sorted(names):
        with suppress(OSError):  # the next time removes it
            run.delete(name)


@contextmanager
def scratch(run: Folder, worker: int) -> Iterator[Path]:
    """A local folder for a while. Those that a killed process of the same worker left are removed."""
    owner = f"raymed-{blake2b(run.uri.encode(), digest_size=6).hexdigest()}-{worker}-"
    for left in Path(tempfile.gettempdir()).glob(f"{owner}*"):
        if not _is_alive(int(left.name.removeprefix(owner).partition("-")[0])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{owner}{os.getpid()}-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
