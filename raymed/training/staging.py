"""Room for checkpoints: a worker puts its part together in a temporary folder, from where it goes to the storage."""

from __future__ import annotations

import math
import re
import shutil
import socket
import tempfile
from pathlib import Path

from torch import nn

from raymed.compat.deepspeed import shape_of
from raymed.errors import StorageError

MOUNTS = Path("/proc/self/mounts")
FULL = 2**20  # bytes that are left, at most, in a folder that is full
REFUSED = re.compile(r"os error (28|122)\b")  # as safetensors says ENOSPC and EDQUOT; what it had written is gone by then


def staging_bytes(module: nn.Module, share: float = 1.0, has_first: bool = True) -> float:
    """Bytes of a checkpoint that lie in a machine's temporary folder, at most.

    The first worker writes the network twice, as training goes on from it and as it is loaded without DeepSpeed: trained
    parameters in float32 at most, frozen ones in their own type. What the optimizer holds of trained parameters (weights in
    float32, two moments) is shared out among workers.

    Args:
        share: of all workers that are on the machine.
        has_first: whether the first is.
    """
    trained, frozen = 0, 0.0
    for each in module.parameters():
        size = math.prod(shape_of(each))
        if each.requires_grad:
            trained += size
        else:
            frozen += size * each.element_size()
    return 2.0 * has_first * (4 * trained + frozen) + 12.0 * share * trained


def check_room(need: float) -> None:
    """Find out before hours of training that no checkpoint would be written.

    Raises:
        StorageError: the temporary folder has no room for so many bytes.
    """
    if problem := lack_of_room(need):
        raise StorageError(f"on {socket.gethostname()} {problem}")


def refuse_full(error: Exception) -> None:
    """Tell of a temporary folder that has filled up since: other runs put their checkpoints together there, too.

    Raises:
        StorageError: from `error`, which came of it.
    """
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free <= FULL or REFUSED.search(str(error)):
        raise StorageError(
            f"on {socket.gethostname()} {folder} is full: every run on a machine puts its checkpoints together there. Free "
            "space, name a folder on a larger disk in TMPDIR before Ray and jobs are started, or train fewer at once"
        ) from error


def lack_of_room(need: float) -> str:
    """Why so many bytes would find no room in the temporary folder, and what to do; empty where they do."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if need <= free:
        return ""
    kind = ", which lies in memory," if is_in_memory(folder) else ""
    return (
        f"{folder}{kind} has {free / 2**30:.2f} GiB free, and a checkpoint is put together there, which takes "
        f"{need / 2**30:.2f} GiB: free space, or name a folder on a larger disk in TMPDIR before Ray and jobs are started"
    )


def is_in_memory(folder: str) -> bool:
    """Whether a folder's file system is a tmpfs, where the system says what it is."""
    if not MOUNTS.exists():
        return False
    mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if Path(folder).resolve().is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]), default=("", ""))[1] == "tmpfs"
