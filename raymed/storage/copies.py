"""Copies of folders with large files, such as models, on another storage: each file as the folder's list of digests has it.

The list comes last: without it a folder is no copy. Files that a copy has already are not copied again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from raymed.errors import UserError
from raymed.storage import disk
from raymed.storage.folder import Folder, make_folders
from raymed.storage.seal import SEAL, check_seal, digest_of_file, read_list

log = logging.getLogger("raymed")

AT_ONCE = 8  # files: one stream from an object store does not fill a machine's network
PART = ".part"


def listed_folders(folder: Folder) -> list[Folder]:
    """The folder, and those directly in it, that have a list of digests."""
    return [each for each in (folder, *map(folder.child, folder.names())) if each.exists(SEAL)]


def copy_folder(source: Folder, target: Folder) -> int:
    """Copy a folder with its list of digests, which one on a local disk need not have. Returns how many files were copied.

    Raises:
        UserError: there is no list, a file is not as it says, or the copy would lie in the folder, or is a file.
    """
    if target.is_local and Path(target.path).is_file():
        raise UserError(f"{target.uri} is a file: name a folder for the copy")
    if source.is_local and target.is_local and Path(source.path) in Path(target.path).parents:
        raise UserError(f"{target.uri} lies in {source.uri}, which would hold its own copy: name a folder elsewhere")
    files, there = _files(source), _copied(target)
    missing = [name for name, digest in files.items() if there.get(name) != digest]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: _copy(source, target, name, files[name]), missing))
    if target.is_local:
        _keep_names(source, target, files)
    target.write(SEAL, json.dumps({"files": files}, indent=1).encode())
    return len(missing)


def _files(source: Folder) -> dict[str, str]:
    """Digests by the names of files."""
    if source.is_local:
        if SEAL in source.names():
            check_seal(Path(source.path))
        return _digests(Path(source.path))
    if SEAL not in source.names():
        raise UserError(f"{source.uri} has no list of digests ({SEAL}): bring it there with python jobs/copy_models.py")
    return read_list(source.read(SEAL), f"{source.uri}/{SEAL}")


def _copied(target: Folder) -> Mapping[str, str]:
    """What a copy has already: on a local disk by what the files hold, elsewhere by the list that was written last."""
    if target.is_local:
        return _digests(Path(target.path))
    return read_list(target.read(SEAL), f"{target.uri}/{SEAL}") if SEAL in target.names() else {}


def _digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / SEAL]
    return {path.relative_to(folder).as_posix(): digest_of_file(path) for path in paths if path.suffix != PART}


def _copy(source: Folder, target: Folder, name: str, digest: str) -> None:
    """Copy a file; on a local disk it has its name once it is whole."""
    try:
        if not target.is_local:
            _send(source, name, target, name)
            return
        part = Path(target.inside(name + PART))
        make_folders(part.parent)
        try:
            _send(source, name, target, name + PART)
            if digest_of_file(part) != digest:
                raise _other(source, name)
            disk.keep(part)
            disk.rename(part, Path(target.inside(name)))
        finally:
            disk.remove(part)
    except OSError as error:
        raise UserError(f"{source.uri}/{name} cannot be copied to {target.uri}: {error}") from error


def _keep_names(source: Folder, target: Folder, names: Iterable[str]) -> None:
    """Those of a copy's files are durable before its list, also where an earlier process wrote them and was killed."""
    folders = {parent: name for name in names for parent in PurePosixPath(name).parents}
    for folder, name in folders.items():
        try:
            disk.keep(Path(target.path) / folder)
        except OSError as error:
            raise UserError(f"{source.uri}/{name} cannot be copied to {target.uri}: {error}") from error


def _send(source: Folder, name: str, target: Folder, other: str) -> None:
    with source.open(name) as content:
        target.send(other, content)


def _other(source: Folder, name: str) -> UserError:
    return UserError(f"{source.uri}/{name} is not as {SEAL} lists it: damaged or exchanged. Copy the folder there again")
