"""A checkpoint's way into the storage: durable before anybody is told of it."""

from __future__ import annotations

from collections.abc import Iterable
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
    if not run.is_local:  # an object is durable when it is there
        for path in sorted(each for each in local.rglob("*") if each.is_file()):
            with path.open("rb") as content:
                run.send(f"{name}/{path.relative_to(local)}", content)
        return
    target = Path(run.path) / name
    disk.make(target)
    for path in sorted(local.rglob("*")):  # a folder before what is in it
        if path.is_dir():
            disk.make(target / path.relative_to(local))
        else:
            disk.copy(path, target / path.relative_to(local))
    keep(run, [name])


def keep(run: Folder, names: Iterable[str]) -> None:
    """Let folders of a run outlive a power cut, whoever copied them: a process may be killed before it gets there.

    Raises:
        OSError: the storage does not answer.
    """
    if not run.is_local:
        return
    for name in names:
        target = run.child(name)
        inside = run.filesystem.get_file_info(fs.FileSelector(target.path, allow_not_found=True, recursive=True))
        folders = [info.path for info in inside if info.type == fs.FileType.Directory]
        for path in [info.path for info in inside if info.is_file] + sorted(folders, reverse=True):
            disk.keep(Path(path))
        if inside:
            disk.keep(Path(target.path))
    # the run's own folder too: Ray Train makes it and writes no folder out
    for folder in (Path(run.path), Path(run.path).parent):
        disk.keep(folder)
