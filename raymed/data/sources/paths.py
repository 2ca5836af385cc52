"""Files below a source's root: what is there, what a path may name, and what is missing."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from raymed.data.sources.listing import Refusal, natural_key
from raymed.errors import UserError


@dataclass(frozen=True)
class Tree:
    """What lies below a folder; paths are relative to it.

    Attributes:
        files: size and time of each, in natural order.
        refusals: links that were not followed.
        folders: in natural order, with links that may stand for one.
    """

    files: dict[str, os.stat_result]
    refusals: tuple[Refusal, ...] = ()
    folders: tuple[str, ...] = ()


def walk(root: Path) -> Tree:
    """All files below `root` but hidden ones. Links to folders are not followed, nor links to files outside `root`.

    Raises:
        UserError: a folder cannot be read, or a name is not UTF-8, so that it could be written down nowhere.
    """
    files: dict[str, os.stat_result] = {}
    refusals: list[Refusal] = []
    folders: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            entries = [entry for entry in os.scandir(root / folder) if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(f"cannot read the folder {root / folder}: {error.strerror}") from error
        for entry in entries:
            path = posixpath.join(folder, entry.name)
            _require_text(root, path)
            link = Path(entry.path)  # which finds nothing at the end of a circle, where an entry raises
            if entry.is_symlink() and not (link.is_file() and _stays_inside(link, root)):
                refusals.append(Refusal(path, path, None, _link(link)))
                if not link.is_file():
                    folders.append(path)
            elif entry.is_dir():
                pending.append(path)
                folders.append(path)
            elif entry.is_file():
                files[path] = entry.stat()
    ordered = {path: files[path] for path in sorted(files, key=natural_key)}
    return Tree(ordered, tuple(refusals), tuple(sorted(folders, key=natural_key)))


def _require_text(root: Path, path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{root}: the name {os.fsencode(path)!r} is not UTF-8, as where an archive from Windows was "
            "unpacked: unpack it with the encoding that it has (unzip -O gb18030), or rename what lies there "
            "(convmv)"
        ) from error


def _link(entry: Path) -> str:
    """Why a symbolic link is not followed."""
    if entry.is_file():
        return "a symbolic link to a file outside the source: put the file itself there"
    if entry.is_dir():
        return "a symbolic link to a folder, which is not followed: put the folder itself there"
    return "a symbolic link that leads nowhere"


def inside(root: Path, path: str, where: str) -> str:
    """A path written in a file, as a tidy path relative to `root`.

    Raises:
        UserError: absolute, or leaving `root`, be it through a link.
    """
    if "\0" in path:
        raise UserError(f"{where}: the path {path!r} holds a NUL character")
    tidy = posixpath.normpath(path.strip().replace("\\", "/"))
    if tidy.startswith("/") or re.match(r"[A-Za-z]:", tidy):
        raise UserError(f"{where}: absolute path {path!r}; write paths relative to {root}, or to what --source.root names")
    if tidy == ".." or tidy.startswith("../"):
        raise UserError(f"{where}: the path {path!r} leaves the folder {root}; move the files or set --source.root")
    if not _stays_inside(root / tidy, root):
        raise UserError(f"{where}: the path {path!r} leads through a symbolic link out of the folder {root}; copy the files")
    return tidy


def read_text(path: Path) -> str:
    """A whole text file.

    Raises:
        UserError: not UTF-8, with the line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8 ('CSV UTF-8' in Excel)") from error


def file_stat(path: Path) -> os.stat_result | None:
    """Size and time of a regular file; None if there is none."""
    try:
        result = path.stat()
    except OSError:
        return None
    return result if stat.S_ISREG(result.st_mode) else None


def absence(path: Path) -> str:
    """Why there is no regular file at a path."""
    if path.is_symlink() and not path.exists():
        return "a symbolic link that leads nowhere"
    return "not a regular file" if path.exists() else "the file does not exist"


def _stays_inside(path: Path, root: Path) -> bool:
    # os.path.realpath: a CSV asks this for every line, and Path.resolve takes three times as long
    real_root = os.path.realpath(root)
    return os.path.commonpath((real_root, os.path.realpath(path))) == real_root
