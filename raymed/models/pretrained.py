"""What pretrained weights hold, wherever they lie: a moved folder is the same one, and an exchanged one is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Protocol, runtime_checkable

from blake3 import blake3
from pyarrow import fs

from raymed.errors import UserError
from raymed.storage.folder import Folder

SAFE, OTHERS = ".safetensors", (".bin", ".pth", ".pt")  # of weights; the others are not read beside safe ones
DESCRIBING = (".json", ".txt", ".model")  # configuration and tokenizer
CHUNK = 16 * 2**20  # bytes that are read at once


@runtime_checkable
class Pretrained(Protocol):
    """Settings that name pretrained weights."""

    @property
    def pretrained(self) -> tuple[str, ...]:
        """Paths or URIs of the folders and files, absolute once they are located."""


def pretrained_of(settings: Any) -> Iterator[str]:
    """Where the pretrained weights lie that nested dataclasses name: of a recipe all that it starts from."""
    if isinstance(settings, Pretrained):
        yield from settings.pretrained
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from pretrained_of(value)


def fingerprint(uri: str) -> str:
    """Names what a file, or a folder's weights, configuration and tokenizer, hold: 16 hexadecimal digits of BLAKE3.

    A process reads a file once, and again where its size or time of change is another one.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    folder = Folder.at(uri)
    try:
        info = folder.filesystem.get_file_info(folder.path)
        if info.type == fs.FileType.File:
            return f"weights {_digest(folder.uri, info.size, info.mtime_ns)[:16]}"
        found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=True))
        files = {PurePosixPath(info.path).relative_to(folder.path): info for info in found if info.type == fs.FileType.File}
        names = [name for name in sorted(files) if not any(part.startswith(".") for part in name.parts)]
        read = (*DESCRIBING, SAFE) if any(name.suffix == SAFE for name in names) else (*DESCRIBING, *OTHERS)
        whole = blake3()
        for name in [name for name in names if name.suffix in read]:
            digest = _digest(folder.child(name.as_posix()).uri, files[name].size, files[name].mtime_ns)
            whole.update(f"{name.as_posix()}\0{digest}\n".encode())
    except OSError as error:
        raise UserError(f"cannot read the pretrained weights {uri}: {error}") from error
    return f"weights {whole.hexdigest()[:16]}"


def by_contents(values: Any, fingerprints: Mapping[str, str]) -> Any:
    """Plain nested values in which what weights hold stands in place of where they lie.

    Args:
        fingerprints: of weights, by their paths.
    """
    if isinstance(values, str):
        return fingerprints.get(values, values)
    if isinstance(values, Mapping):
        return {name: by_contents(value, fingerprints) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [by_contents(value, fingerprints) for value in values]
    return values


def held_by(settings: Mapping[str, Any], fingerprints: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    """What pretrained weights hold, by the dotted names of the nested settings that say where they lie."""
    held = dict[str, str]()
    for name, value in settings.items():
        if isinstance(value, Mapping):
            held |= held_by(value, fingerprints, f"{prefix}{name}.")
        elif isinstance(value, str) and value in fingerprints:
            held[prefix + name] = fingerprints[value]
    return held


@lru_cache(maxsize=4096)
def _digest(uri: str, size: int, changed: int) -> str:
    """BLAKE3 of a file; `size` and `changed` tell one state of it from another."""
    file, digest = Folder.at(uri), blake3(max_threads=blake3.AUTO)
    with file.filesystem.open_input_stream(file.path) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())
