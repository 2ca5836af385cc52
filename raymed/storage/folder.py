"""A folder named by a URI: a local path, NFS, or an object store such as ``s3://``.

Everything that raymed keeps (prepared data, checkpoints, reports) is reached through `Folder`, so that nothing assumes a
shared working directory. Files are written whole: a reader sees the old bytes or the new ones, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow import fs

from raymed import clock
from raymed.errors import UserError
from raymed.storage import disk

log = logging.getLogger("raymed")

SECRET = re.compile(r"[^/]*@|[^/:@]*:(?!\d+(?:/|$))[^@]*@")  # NAME@, or NAME:PASSWORD@ with slashes; not HOST:PORT/...@...
DRIVE = re.compile(r"([A-Za-z]):[\\/]")
DRIVES = Path("/mnt")  # where Linux beside Windows has the drives
PIECE = 2**23  # bytes that are read at a time
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")  # name another service than Amazon's
ASKED = 60.0  # seconds in which S3 is asked again for a bucket's region

_marks: dict[str, tuple[Path, ...]] = {}  # by the path of a storage, files in it that only this process removes


@dataclass(frozen=True)
class Folder:
    """A folder on some file system. Build one with `Folder.at`; children cannot leave it."""

    filesystem: fs.FileSystem
    path: str
    uri: str

    @classmethod
    def at(cls, uri: str | Path) -> Folder:
        """The folder at a local path or a URI; one with a drive letter is where Linux mounts the drive. It need not exist
        yet.

        Raises:
            UserError: the URI's scheme is unknown, it holds a password, or names no bucket that there is.
            OSError: Amazon did not say where the bucket is; asked once in a process, for a minute at most.
        """
        text = off_drive(str(uri))
        refuse_password(text)
        if "://" not in text:
            path = str(Path(text).expanduser().resolve())
            return cls(fs.LocalFileSystem(), path, path)
        try:
            filesystem, path = fs.FileSystem.from_uri(_with_options(text))
        except (pa.ArrowInvalid, ValueError) as error:
            raise UserError(f"cannot open the storage {text!r}: {error}. Use a folder or a URI such as s3://...") from error
        if not path.rstrip("/"):
            raise UserError(
                f"the storage {text!r} names no bucket or folder: write one behind it, such as s3://BUCKET/FOLDER"
            )
        return cls(filesystem, path.rstrip("/"), text.rstrip("/"))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def child(self, name: str) -> Folder:
        """The folder `name` inside this one."""
        base, mark, query = self.uri.partition("?") if not self.is_local else (self.uri, "", "")
        return Folder(self.filesystem, self.inside(name), f"{base}/{name}{mark}{query}")

    def exists(self, name: str = "") -> bool:
        path = self.inside(name) if name else self.path
        return self.filesystem.get_file_info(path).type != fs.FileType.NotFound

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; empty where the folder does not exist."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def modified(self, name: str) -> float:
        """When the file `name` was written, as the storage noted it, in seconds.

        Raises:
            FileNotFoundError: it is not there.
        """
        info = self.filesystem.get_file_info(self.inside(name))
        if info.mtime_ns is None:
            raise FileNotFoundError(f"{self.uri}/{name}")
        return float(info.mtime_ns) / 1e9

    def size(self, name: str) -> int:
        """Bytes of the file `name`; none where it is not there."""
        return self.filesystem.get_file_info(self.inside(name)).size or 0

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self.inside(name)) as stream:
            return stream.readall()

    def open(self, name: str) -> pa.NativeFile:
        """A random-access reader of the file `name`."""
        return self.filesystem.open_input_file(self.inside(name))

    def write(self, name: str, content: bytes) -> None:
        """Write the file `name` whole: under a temporary name first where the file system can rename.

        Raises:
            UserError: the folder cannot be written to.
        """
        try:
            self.put(name, content)
        except OSError as error:
            raise UserError(f"cannot write {self.uri}/{name}: {error}. Free space, or choose another folder.") from error

    def put(self, name: str, content: bytes) -> None:
        """As `write`, for who waits for a storage that is away.

        Raises:
            OSError: it is, or refuses.
        """
        path = self.inside(name)
        if not self.is_local:  # object stores have no folders, and publish an object only when it is complete
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        target = Path(path)
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
        make_folders(target.parent)
        try:
            disk.write(temporary, content)
            disk.keep(temporary)
            disk.rename(temporary, target)
            disk.keep(target.parent)
        finally:
            disk.remove(temporary)

    def send(self, name: str, content: IO[bytes]) -> None:
        """Write all that `content` reads to the file `name`, piece by piece.

        Not by Arrow's `copy_files`: it drops the error with which a stream closes, and that is how an object store says that
        it has not taken a file.

        Raises:
            OSError: the storage does not take it.
        """
        with self.filesystem.open_output_stream(self.inside(name), compression=None) as stream:
            shutil.copyfileobj(content, stream, PIECE)

    def make(self) -> None:
        """Make the folder, durably, with those above it. Object stores have no folders."""
        if self.is_local:
            make_folders(Path(self.path))

    def check_writable(self) -> None:
        """Write a small file and remove it again, with the folders that were made for it.

        Raises:
            UserError: the folder cannot be written to.
        """
        made = [path for path in (Path(self.path), *Path(self.path).parents) if self.is_local and not path.exists()]
        name = f"written-{uuid.uuid4().hex}.tmp"
        self.write(name, b"")
        self.delete(name)
        for path in made:
            with contextlib.suppress(OSError):  # another job writes there already
                path.rmdir()

    def delete(self, name: str = "") -> None:
        """Remove the file or folder `name`, or this folder, if it is there."""
        path = self.inside(name) if name else self.path
        kind = self.filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(path)

    def inside(self, name: str) -> str:
        """The path of a file or folder in this one, on its file system.

        Raises:
            UserError: the name leads out of it.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts or name.startswith("/") or ".." in parts:
            raise UserError(f"{name!r} is not a path inside {self.uri}")
        return f"{self.path}/{'/'.join(parts)}"


def _with_options(uri: str) -> str:
    """The URI with which Arrow writes a small file to S3 by one request in place of three, and asks for no region."""
    if not uri.startswith("s3://"):
        return uri
    where, _, query = uri.partition("?")
    bucket = where.removeprefix("s3://").partition("/")[0]
    options = [query] * bool(query) + ["allow_delayed_open=true"]
    is_elsewhere = "endpoint_override=" in query or any(name in os.environ for name in ENDPOINTS)
    if bucket and "region=" not in query and not is_elsewhere:
        options.append(f"region={_region(bucket)}")
    return f"{where}?{'&'.join(options)}"


@cache
def _region(bucket: str) -> str:
    """Of Amazon's S3, asked once in a process: Arrow would ask whenever a URI is opened, which nothing waits for.

    Raises:
        UserError: there is no such bucket.
        OSError: S3 did not answer for a minute.
    """
    until, is_said = clock.seconds() + ASKED, False
    while True:
        try:
            return fs.resolve_s3_region(bucket)
        except OSError as error:
            if "not found" in str(error):
                raise UserError(
                    f"Amazon knows no bucket {bucket!r}: check the address of the storage, or name its region: "
                    f"s3://{bucket}/FOLDER?region=..."
                ) from error
            if clock.seconds() >= until:
                raise
            if not is_said:
                log.warning("Amazon does not say where the bucket %s lies (%s): asking again for a minute", bucket, error)
                is_said = True
        clock.sleep(1.0)


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing; each is durable, which its own files alone would not make it.

    Raises:
        OSError: it cannot be made, or the storage that it is to lie in is away, see `marked`.
    """
    missing = [*takewhile(lambda folder: not disk.exists(folder), (path, *path.parents))]
    require_mounted(path)
    for folder in reversed(missing):
        disk.make(folder)
        disk.keep(folder.parent)


@contextlib.contextmanager
def marked(storage: Folder, name: str) -> Iterator[None]:
    """Within, a storage is known by a file in it that is this process's: where that is not there, the storage is away,
    whatever lies below its mount point. Then this process makes no folder in it.

    Raises (on entering):
        UserError: the file cannot be written.
    """
    if not storage.is_local:
        yield
        return
    storage.write(name, b"")
    mark = Path(storage.inside(name))
    _marks[storage.path] = (*_marks.get(storage.path, ()), mark)
    try:
        yield
    finally:
        _marks[storage.path] = tuple(each for each in _marks[storage.path] if each != mark)


def require_mounted(path: Path) -> None:
    """Raises: FileNotFoundError: the storage that a path lies in is away, as far as this process can know; see `marked`."""
    for above in (path, *path.parents):
        for mark in _marks.get(str(above), ()):
            if not disk.exists(mark):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(mark))


def keep_names_above(path: Path) -> None:
    """Make the names of a folder, and of those above it, durable: who made one may have been killed before it did."""
    for folder in path.parents:
        with contextlib.suppress(PermissionError):  # of a folder that this account only passes through
            disk.keep(folder)


def off_drive(text: str) -> str:
    """A path with a drive letter as this system writes it: ``D:\\x`` is ``/mnt/d/x`` but on Windows; others as they are."""
    if os.name == "nt" or not (drive := DRIVE.match(text)):
        return text
    return os.path.normpath(DRIVES / drive[1].lower() / text[drive.end() :].replace("\\", "/").lstrip("/"))


def require_other(out: str | Path, *read: str | Path) -> None:
    """Make sure that a result does not replace what it is made from.

    Raises:
        UserError: `out` is one of the files or folders that are read.
    """
    if any(_is_same(str(out), str(each)) for each in read if each):
        raise UserError(f"--out {out} is what is read, and would be lost: name another")


def _is_same(path: str, other: str) -> bool:
    try:
        return Path(off_drive(path)).expanduser().samefile(Path(off_drive(other)).expanduser())
    except (OSError, RuntimeError, ValueError):  # one of them is not there, or no path at all
        return False


def refuse_password(uri: str) -> None:
    """Addresses are printed, and recorded in MLflow and reports: no secret may stand in one.

    Raises:
        UserError: the address has the form ``scheme://USER:PASSWORD@...``; the message does not repeat it.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and SECRET.match(rest):
        raise UserError(
            f"the {scheme}:// address holds a name or password, and addresses are recorded. Leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or AWS_PROFILE, in the environment"
        )
