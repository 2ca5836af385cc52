"""Entries of a file, one JSON object a line, each with a checksum: a line that was changed, cut off or put elsewhere shows.

A checksum may rest on the one of the line before. Then the last one stands for all of them, in their order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_BEFORE, _AFTER, _LENGTH = b',"checksum":"', b'"}', 16  # around the checksum, at the end of a line; its length


def to_line(entry: Mapping[str, Any], before: str = "") -> bytes:
    """An entry, which is not empty, as a line; `before` is the checksum that its own rests on."""
    body = json.dumps(entry, separators=(",", ":")).encode()
    return body[:-1] + _BEFORE + _checksum(body, before).encode() + _AFTER + b"\n"


def checksum(line: bytes) -> str:
    """The checksum that a line of `to_line` ends with."""
    return line[-len(_AFTER) - 1 - _LENGTH : -len(_AFTER) - 1].decode("ascii", "replace")


def has_checksum(line: bytes) -> bool:
    return line[: -len(_AFTER) - 1 - _LENGTH].endswith(_BEFORE) and line.endswith(_AFTER + b"\n")


def from_line(line: bytes, before: str = "") -> dict[str, Any]:
    """The entry in a line.

    Raises:
        ValueError: the line is cut off, or not what was written.
    """
    check(line, before)
    return entry_of(line)


def check(line: bytes, before: str = "") -> None:
    """Raises: ValueError: the line is cut off, or not what was written."""
    if not line.endswith(b"\n"):
        raise ValueError("it is cut off")
    if not has_checksum(line):
        raise ValueError("it has no checksum")
    if _checksum(_body(line), before) != checksum(line):
        raise ValueError("its checksum is not that of its content")


def entry_of(line: bytes) -> dict[str, Any]:
    """The entry in a line that was checked."""
    return plain(_body(line))


def plain(line: bytes) -> dict[str, Any]:
    """The JSON object in a line without a checksum.

    Raises:
        ValueError: there is none.
    """
    try:
        entry = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(entry, dict):
        raise ValueError("it is no JSON object")
    return entry


def _body(line: bytes) -> bytes:
    return line[: -len(_AFTER) - 1 - _LENGTH - len(_BEFORE)] + b"}"


def _checksum(body: bytes, before: str) -> str:
    return hashlib.blake2b(before.encode() + body, digest_size=_LENGTH // 2).hexdigest()
