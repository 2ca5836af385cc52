"""A checkpoint's way into the storage: durable before anybody is told of it."""

from __future__ import annotations

from pathlib import Path

from pyarrow import fs

from raymed.storage import disk
from raymed.storage.folder import Folder


def upload(local: Path, run: Folder, name: str) -> None:
    """Copy a local folder's files into the folder `name` of a run. They outlive a power cut once this returns.

    The run's folder must be there: where it is not, its storage is away, and nothing is written below a mount point.

    Raises:
        OSError: the storage does not take them.
    """
    if not run.is_local:  # an object is durable when it is there; Arrow's uploads in threads can deadlock
        fs.copy_files(str(local), run.child(name).path, destination_filesystem=run.filesystem, use_threads=False)
        return
    target = Path(run.path) / name
    folders = [target, *(target / path.relative_to(local) for path in sorted(local.rglob("*")) if path.is_dir())]
    for folder in folders:
        disk.make(folder)
    for path in local.rglob("*"):
        if path.is_file():
            disk.copy(path, target / path.relative_to(local))
            disk.keep(target / path.relative_to(local))
    # the run's own folder too: Ray Train makes it and writes no folder out
    for folder in [*reversed(folders), target.parent, target.parent.parent]:
        disk.keep(folder)
