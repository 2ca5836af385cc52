"""The few calls of the operating system on which it depends what outlives a power cut.

Bytes that were written are durable once `keep` has returned for their file, and a name once it has for its folder.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

NO_SUCH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of fsync, by file systems that do not know it for folders


def exists(path: Path) -> bool:
    return path.exists()


def read(path: Path) -> bytes:
    return path.read_bytes()


def size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: it is not there.
    """
    return path.stat().st_size


def write(path: Path, content: bytes) -> None:
    """Write a file anew."""
    path.write_bytes(content)


def append(path: Path, content: bytes, at: int) -> None:
    """Write from a place on into a file that is there; what lay behind is cut off."""
    with path.open("r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(content)


def copy(source: Path, target: Path) -> None:
    """Copy a file of this machine."""
    shutil.copyfile(source, target)


def rename(path: Path, target: Path) -> None:
    """Give a file another name, in place of what has it."""
    path.replace(target)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def make(path: Path) -> None:
    """Make a folder, if it is not there, in one that is."""
    path.mkdir(exist_ok=True)


def keep(path: Path) -> None:
    """Write a file out, or a folder, without which the names in it do not outlive a power cut."""
    if os.name == "nt":  # Windows opens no folders, and keeps names by itself
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in NO_SUCH or not path.is_dir():  # they keep names by themselves
            raise
    finally:
        os.close(opened)
