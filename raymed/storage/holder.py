"""Who holds something: a process, as it is told from every other one, and whether it still lives."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn


def myself() -> dict[str, Any]:
    """This process, in words that others can read."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def has_ended(holder: Mapping[str, Any]) -> bool | None:
    """Whether a process has ended; None where that cannot be seen from here."""
    if not _machine() or holder.get("machine") != _machine():
        return None
    pid = int(holder["pid"])
    return None if _is_hidden(pid) else _started(pid) != holder["started"]


last_words: list[Callable[[int, str], None]] = []
"""What is done with code and reason before this process ends in the middle of its work; a job tells whoever reads it."""


def end(code: int, reason: str) -> NoReturn:
    """End this process, whatever its other threads do. Ray ends what it started for a process that is gone."""
    try:
        print(reason, file=sys.stderr, flush=True)
        for tell in last_words:
            tell(code, reason)
    finally:
        os._exit(code)


def _machine() -> str:
    """Names where process ids are those that we see: a host since it started, or a container on it. Empty without /proc."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not (boot.exists() and processes.is_symlink()):
        return ""  # a process id alone, which another process may have by now, tells nothing
    return " ".join([socket.gethostname(), boot.read_text().strip(), str(processes.readlink())])


def _is_hidden(pid: int) -> bool:
    """Whether there is a process of another account that /proc does not show."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError) and not Path(f"/proc/{pid}").exists()
    return False


def _started(pid: int) -> str:
    """When a process was started, by a clock of its machine; empty where there is none (any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
