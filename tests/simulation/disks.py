"""Simulated disks: what is written is durable only once it was kept, and a power cut keeps a seeded part of the rest.

A disk is a tree of names and the files that they stand for. Other processes see what was written at once; on a disk that
several hosts reach (NFS), the power cut of a host costs what that host had not kept. An object store has no pending state,
no renaming and no folders; its answers can be lost, and what is deleted by prefix is deleted object by object.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import random
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from machines import Host, World
from pyarrow import fs

from raymed.errors import UserError
from raymed.storage.folder import Folder


@dataclass(eq=False)
class Node:
    """A file's bytes, or a folder.

    Attributes:
        kept: the bytes that are durable.
        pending: states since then, oldest first, each with who wrote it; the last one is what is read.
    """

    is_folder: bool = False
    kept: bytes = b""
    pending: list[tuple[Host | None, bytes]] = field(default_factory=list)
    modified: float = 0.0

    @property
    def content(self) -> bytes:
        return self.pending[-1][1] if self.pending else self.kept


class Disk:
    """A local file system, or one that hosts share.

    Attributes:
        is_away: whether it is not mounted. Then each host sees its empty mount point, and what was written below that.
    """

    def __init__(self, world: World, mount_point: str = "/") -> None:
        self._world, self._mount_point = world, mount_point
        self._below: dict[str, dict[str, Node]] = defaultdict(
            lambda: {path: Node(is_folder=True) for path in {"/", mount_point}}
        )
        self.names: dict[str, Node] = {"/": Node(is_folder=True)}
        self._kept: dict[str, Node] = dict(self.names)
        self._renamed: dict[str, str] = {}  # names that were given by renaming, to the earlier ones
        self._changed: dict[str, Host | None] = {}  # names that are not as kept, and who changed them
        self.is_away = False

    @property
    def seen(self) -> dict[str, Node]:
        """What the running process sees."""
        return self._below[self._host.name if self._host else ""] if self.is_away else self.names

    @property
    def below(self) -> set[str]:
        """What was written below the mount point."""
        return {path for tree in self._below.values() for path in tree if path not in ("/", self._mount_point)}

    def node(self, path: str) -> Node:
        if path not in self.seen:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self.seen[path]

    def exists(self, path: str) -> bool:
        return path in self.seen

    def inside(self, path: str) -> list[str]:
        """The paths directly inside."""
        start = path.rstrip("/") + "/"
        return [p for p in self.seen if p.startswith(start) and "/" not in p[len(start) :] and p != path]

    def write(self, path: str, content: bytes) -> None:
        self.node(posixpath.dirname(path))
        node = self.seen.get(path)
        if node is None:
            node = self._set(path, Node())
        self._change(node, content)

    def append(self, path: str, content: bytes, at: int) -> None:
        node = self.node(path)
        self._change(node, node.content[:at].ljust(at, b"\0") + content)

    def _change(self, node: Node, content: bytes) -> None:
        node.pending.append((self._host, content))
        node.modified = self._world.now

    def rename(self, path: str, target: str) -> None:
        node = self.node(path)
        self._set(target, node)
        if not self.is_away:
            self._renamed[target] = path
        self._drop(path)

    def remove(self, path: str) -> None:
        if self.exists(path):
            self._drop(path)

    def make(self, path: str) -> None:
        if path in self.seen:
            return
        self.node(posixpath.dirname(path))
        self._set(path, Node(is_folder=True))

    def keep(self, path: str) -> None:
        """As fsync: of a file its bytes, of a folder the names in it."""
        node = self.node(path)
        if not node.is_folder:
            node.kept, node.pending = node.content, []
            return
        if self.is_away:
            return
        start = path.rstrip("/") + "/"
        for name in [name for name in self._changed if name.startswith(start) and "/" not in name[len(start) :]]:
            self._keep_name(name)

    def _keep_name(self, name: str) -> None:
        self._changed.pop(name, None)
        self._renamed.pop(name, None)
        if name in self.names:
            self._kept[name] = self.names[name]
        else:
            self._kept.pop(name, None)

    @property
    def _host(self) -> Host | None:
        return self._world.current.host if self._world.current else None

    def _set(self, path: str, node: Node) -> Node:
        self.seen[path] = node
        if not self.is_away:
            self._changed[path] = self._host
        return node

    def _drop(self, path: str) -> None:
        del self.seen[path]
        if not self.is_away:
            self._changed[path] = self._host

    def lose_power(self, host: Host | None, draw: random.Random) -> None:
        """A host, or what holds the disk (None), loses its power: of what was not kept, a part stays."""
        for name in list(self._changed):
            if name in self._changed and (host is None or self._changed[name] is host):
                earlier = self._renamed.get(name)
                stays = draw.random() < 0.5
                for each in filter(None, (name, earlier)):  # renaming happens or does not
                    if each in self._changed:
                        self._settle(each, stays)
        for node in dict.fromkeys(self.names.values()):
            lost = [place for place, (writer, _) in enumerate(node.pending) if host is None or writer is host]
            if lost:
                node.kept = self._torn(node, lost[0], draw)
                node.pending = []
        for name in sorted(self.names):  # nothing stays in a folder that did not
            parent = posixpath.dirname(name)
            if name != "/" and parent not in self.names:
                del self.names[name]
                self._kept.pop(name, None)
        self._kept = {name: node for name, node in self._kept.items() if name in self.names}

    def _settle(self, name: str, stays: bool) -> None:
        if stays:
            self._keep_name(name)
            return
        self._changed.pop(name, None)
        self._renamed.pop(name, None)
        if name in self._kept:
            self.names[name] = self._kept[name]
        else:
            self.names.pop(name, None)

    def _torn(self, node: Node, first: int, draw: random.Random) -> bytes:
        """What a power cut leaves of bytes that were not kept: an earlier state, a part of a later one, or noise in it."""
        states = [node.kept, *(content for _, content in node.pending)]
        before, after = states[first], states[draw.randrange(first + 1, len(states))]
        how = draw.randrange(4)
        if how == 0:
            return before
        if how == 1:
            return after
        common = len(posixpath.commonprefix([before, after]))
        cut = draw.randint(common, max(common, len(after)))
        return after[:cut] if how == 2 else after[:cut] + bytes(len(after) - cut)


class ObjectStore:
    """Objects by their keys: whole, and durable once they are there.

    Attributes:
        spared: uploads to come that go well before one that does not.
        refused, unanswered: of how many uploads after those none is taken, and of how many that are taken nobody is told.
        denied_until: when this account may write again.
        slow_until: until when each upload takes its time.
    """

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._draw = world, random.Random(f"store {seed}")
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.is_away = False
        self.spared = self.refused = self.unanswered = 0
        self.denied_until = self.slow_until = 0.0

    def heal(self) -> None:
        self.spared = self.refused = self.unanswered = 0
        self.denied_until = self.slow_until = 0.0

    def get(self, path: str) -> bytes:
        self._answer()
        if path not in self.objects:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self.objects[path][0]

    def put(self, path: str, content: bytes) -> None:
        self._answer()
        if self._world.now < self.denied_until:
            raise OSError(f"When uploading {path}: AWS Error ACCESS_DENIED during PutObject operation")
        is_spared = self.spared > 0
        self.spared -= is_spared
        if not is_spared and self.refused:
            self.refused -= 1
            raise OSError(f"When uploading {path}: AWS Error SLOW_DOWN during PutObject operation")
        self.objects[path] = content, self._world.now
        if not is_spared and self.unanswered:
            self.unanswered -= 1
            raise OSError(f"When uploading {path}: AWS Error NETWORK_CONNECTION: the connection was closed")

    def be_slow(self) -> None:
        """Before an upload, which Arrow does in one call: no other process can go on within."""
        if self._world.now < self.slow_until:
            self._world.sleep(self._draw.uniform(0.1, 20))

    def keys(self, path: str) -> list[str]:
        self._answer()
        return [key for key in sorted(self.objects) if key.startswith(path.rstrip("/") + "/")]

    def _answer(self) -> None:
        if self.is_away:
            raise OSError("When listing objects: AWS Error NETWORK_CONNECTION: no answer")


class Storages:
    """What each process reaches: its host's own disk, the shared one under /shared, and the object store."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self.shared, self.store = Disk(world, "/shared"), ObjectStore(world, seed)
        self.own = {host.name: Disk(world) for host in world.hosts}
        self.shared.names["/shared"] = self.shared._kept["/shared"] = Node(is_folder=True)
        self._disk_files, self._store_files = fs.PyFileSystem(_DiskFiles(self)), fs.PyFileSystem(_StoreFiles(self))

    @property
    def is_away(self) -> bool:
        """Whether what hosts share, a disk and an object store, does not answer."""
        return self.shared.is_away

    @is_away.setter
    def is_away(self, is_away: bool) -> None:
        self.shared.is_away = self.store.is_away = is_away

    def files(self) -> dict[str, bytes]:
        """What is in both."""
        on_disk = {path: node.content for path, node in self.shared.names.items() if not node.is_folder}
        return on_disk | {path: content for path, (content, _) in self.store.objects.items()}

    def disk(self, path: str) -> Disk:
        if path.startswith("/shared") or self._world.current is None:
            return self.shared
        return self.own[self._world.current.host.name]

    def reach(self, uri: str) -> Folder:
        """As `Folder.at`."""
        if uri.startswith("s3://"):
            return StoreFolder(self._store_files, uri.removeprefix("s3://").rstrip("/"), uri.rstrip("/"), self)
        return DiskFolder(self._disk_files, uri.rstrip("/"), uri.rstrip("/"), self)

    def touch(self, kind: str, path: str) -> None:
        self._world.touch(kind, path, kind != "object")  # called by Arrow: no other process can go on meanwhile

    def copy_to_local(self, source: Folder, target: Path) -> None:
        """As `raymed.training.checkpoint.copy_to_local`, which Arrow does in threads."""
        self.touch("fetch", source.path)
        self._world.require_room()
        target.mkdir(parents=True, exist_ok=True)
        files = _StoreFiles(self) if not source.is_local else _DiskFiles(self)
        found = list(files.below(source.path))
        if not found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source.path)
        for path, is_folder in found:
            local = target / path.removeprefix(source.path + "/")
            if not is_folder:
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(files.content(path) or b"")

    # as the functions of raymed.storage.disk

    def exists(self, path: Path | str) -> bool:
        path = str(path)
        self.touch("look", path)
        return self.disk(path).exists(path)

    def read(self, path: Path | str) -> bytes:
        path = str(path)
        self.touch("read", path)
        return self.disk(path).node(path).content

    def size(self, path: Path) -> int:
        name = str(path)
        self.touch("look", name)
        return len(self.disk(name).node(name).content)

    def write(self, path: Path, content: bytes) -> None:
        name = str(path)
        self._in_parts(name, content, lambda part: self.disk(name).write(name, part))

    def append(self, path: Path, content: bytes, at: int) -> None:
        name = str(path)
        self._in_parts(name, content, lambda part: self.disk(name).append(name, part, at))

    def copy(self, source: Path, target: Path) -> None:
        self.write(target, source.read_bytes())

    def _in_parts(self, path: str, content: bytes, write: Callable[[bytes], None]) -> None:
        """A file is written in parts, between which a process may be killed."""
        self.touch("write", path)
        half = len(content) // 2
        if half:
            write(content[:half])
            self.touch("write more", path)
        write(content)

    def rename(self, path: Path, target: Path) -> None:
        name = str(path)
        self.touch("rename", name)
        self.disk(name).rename(name, str(target))

    def remove(self, path: Path | str) -> None:
        name = str(path)
        self.touch("remove", name)
        self.disk(name).remove(name)

    def make(self, path: Path) -> None:
        name = str(path)
        self.touch("make", name)
        self.disk(name).make(name)

    def keep(self, path: Path) -> None:
        name = str(path)
        self.touch("keep", name)
        self.disk(name).keep(name)


@dataclass(frozen=True)
class DiskFolder(Folder):
    """A folder on a simulated disk."""

    storages: Storages

    @property
    def is_local(self) -> bool:
        return True

    @property
    def _disk(self) -> Disk:
        return self.storages.disk(self.path)

    def child(self, name: str) -> DiskFolder:
        return DiskFolder(self.filesystem, self.inside(name), f"{self.uri}/{name}", self.storages)

    def exists(self, name: str = "") -> bool:
        self.storages.touch("look", self.path)
        return self._disk.exists(self.inside(name) if name else self.path)

    def names(self) -> list[str]:
        self.storages.touch("look", self.path)
        return sorted(map(posixpath.basename, self._disk.inside(self.path)))

    def modified(self, name: str) -> float:
        self.storages.touch("look", self.path)
        return self._disk.node(self.inside(name)).modified

    def read(self, name: str) -> bytes:
        return self.storages.read(self.inside(name))

    def delete(self, name: str = "") -> None:
        path = self.inside(name) if name else self.path
        for each in sorted((p for p in self._disk.seen if p.startswith(path + "/")), reverse=True):
            self.storages.remove(each)
        self.storages.remove(path)


@dataclass(frozen=True)
class StoreFolder(Folder):
    """A prefix in the simulated object store."""

    storages: Storages

    @property
    def is_local(self) -> bool:
        return False

    def child(self, name: str) -> StoreFolder:
        return StoreFolder(self.filesystem, self.inside(name), f"{self.uri}/{name}", self.storages)

    def exists(self, name: str = "") -> bool:
        self.storages.touch("look", self.path)
        path = self.inside(name) if name else self.path
        return path in self.storages.store.objects or bool(self.storages.store.keys(path))

    def names(self) -> list[str]:
        self.storages.touch("look", self.path)
        start = len(self.path) + 1
        return sorted({key[start:].split("/")[0] for key in self.storages.store.keys(self.path)})

    def modified(self, name: str) -> float:
        self.storages.touch("look", self.path)
        self.storages.store.get(self.inside(name))
        return self.storages.store.objects[self.inside(name)][1]

    def read(self, name: str) -> bytes:
        self.storages.touch("read", self.path)
        return self.storages.store.get(self.inside(name))

    def write(self, name: str, content: bytes) -> None:
        try:
            self.storages.touch("put", name)
            self.storages.store.be_slow()
            super().write(name, content)
            self.storages.touch("answer", name)
        except OSError as error:
            raise UserError(f"cannot write {self.uri}/{name}: {error}") from error

    def send(self, name: str, content: IO[bytes]) -> None:
        self.storages.touch("put", name)
        self.storages.store.be_slow()
        super().send(name, content)
        self.storages.touch("answer", name)

    def delete(self, name: str = "") -> None:
        path = self.inside(name) if name else self.path
        for key in [*self.storages.store.keys(path), path]:
            self.storages.touch("remove", key)
            self.storages.store.objects.pop(key, None)


class _Files(fs.FileSystemHandler):
    """What Arrow asks of a file system; only what copying and reading need."""

    @abstractmethod
    def content(self, path: str) -> bytes | None:
        """Of a file; None of what is none."""

    @abstractmethod
    def below(self, path: str) -> Iterator[tuple[str, bool]]:
        """All paths below, and whether each is a folder."""

    def write(self, path: str, content: bytes) -> None:
        """Write a file anew; ours are written through Arrow in object stores alone."""
        self._refuse()

    def get_type_name(self) -> str:
        return "simulated"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> fs.FileInfo:
        content = self.content(path)
        if content is not None:
            return fs.FileInfo(path, fs.FileType.File, size=len(content))
        return fs.FileInfo(path, fs.FileType.Directory if any(self.below(path)) else fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        entries = list(self.below(selector.base_dir))
        if not entries and not selector.allow_not_found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), selector.base_dir)
        return [fs.FileInfo(path, fs.FileType.Directory) if is_folder else self._info(path) for path, is_folder in entries]

    def open_input_file(self, path: str) -> pa.NativeFile:
        content = self.content(path)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return pa.PythonFile(io.BytesIO(content), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Sink(lambda content: self.write(path, content)), mode="w")

    def create_dir(self, path: str, recursive: bool) -> None:
        """Only object stores are written through Arrow, and have none."""

    def _refuse(self, *_: Any) -> None:
        """What the product does not do through Arrow; a night in which it did would not be simulated as it is."""
        raise io.UnsupportedOperation("a simulated disk does not do that through Arrow")

    open_append_stream = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = _refuse
    move = copy_file = _refuse


class _Sink(io.BytesIO):
    def __init__(self, done: Callable[[bytes], None]) -> None:
        super().__init__()
        self._done = done

    def close(self) -> None:
        if not self.closed:  # only once, even where it is refused
            content = self.getvalue()
            super().close()
            self._done(content)


class _DiskFiles(_Files):
    def __init__(self, storages: Storages) -> None:
        self._storages = storages

    def content(self, path: str) -> bytes | None:
        disk = self._storages.disk(path)
        return disk.node(path).content if disk.exists(path) and not disk.node(path).is_folder else None

    def below(self, path: str) -> Iterator[tuple[str, bool]]:
        disk = self._storages.disk(path)
        yield from ((p, node.is_folder) for p, node in disk.seen.items() if p.startswith(path + "/"))


class _StoreFiles(_Files):
    def __init__(self, storages: Storages) -> None:
        self._storages, self._store = storages, storages.store

    def content(self, path: str) -> bytes | None:
        self._store._answer()
        return self._store.objects[path][0] if path in self._store.objects else None

    def below(self, path: str) -> Iterator[tuple[str, bool]]:
        yield from ((key, False) for key in self._store.keys(path))

    def write(self, path: str, content: bytes) -> None:
        self._storages.touch("object", path)
        self._store.put(path, content)
