"""A checkpoint's way into the storage: durable before anybody is told of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from pyarrow import fs

from raymed.storage.folder import Folder, make_durable


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
        folder.mkdir(exist_ok=True)
    for path in local.rglob("*"):
        if path.is_file():
            shutil.copyfile(path, target / path.relative_to(local))
            make_durable(target / path.relative_to(local))
    for folder in [*reversed(folders), target.parent]:
        make_durable(folder)
