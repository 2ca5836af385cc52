"""A storage that is away for a while is waited for; one that is full or read-only is not."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from raymed import clock
from raymed.errors import RunError, StorageError, UserError
from raymed.storage.folder import Folder, require_mounted

REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # what waiting does not mend
DENIED = "ACCESS_DENIED"  # in what Arrow says of an object store's
BELIEVED = 60.0  # seconds after which a store that denies access is believed: a machine may lack credentials for a moment
PAUSE = 2.0  # seconds between two tries
UNWRITTEN = "%s cannot be written (%s): the search waits for it, %g minutes at most"
UNSAID = 30.0  # seconds that one waits before it says so: most waits are over by then

Result = TypeVar("Result")


def wait_for(
    action: Callable[[], Result], storage: Folder, minutes: float, waiting: Callable[[OSError], None] = lambda error: None
) -> Result:
    """Do what a storage may refuse, again and again while it is away.

    Args:
        minutes: to wait for it, from the first refusal on: what is done may take longer by itself.
        waiting: called before each new try, with why the last one failed.

    Raises:
        StorageError: it is full or read-only, or was away for longer.
    """
    since = denied_since = None
    while True:
        try:
            return action()
        except OSError as error:
            now = clock.seconds()
            since = now if since is None else since
            if not is_denial(error):
                denied_since = None
            elif denied_since is None:
                denied_since = now
            is_believed = denied_since is None or now - denied_since >= min(BELIEVED, 60 * minutes)
            waited = now - since
            if is_refusal(error) and is_believed:
                raise StorageError(
                    f"{storage.uri} cannot be used: {error}. The checkpoints in it are untouched. "
                    "Free space or mend the permissions, and run the same command again"
                ) from error
            if waited >= 60 * minutes:
                raise StorageError(
                    f"{storage.uri} has been away from {socket.gethostname()} for {minutes:g} minutes "
                    f"(train.storage_minutes): {error}. Its checkpoints are untouched. Bring it back, at the same place on "
                    "every machine of the cluster, and run the same command again"
                ) from error
            waiting(error)
        clock.sleep(PAUSE)


def once(say: Callable[[OSError], None]) -> Callable[[OSError], None]:
    """For `wait_for`: says, one single time, why it waits for longer than most waits take."""
    begun, said = list[float](), list[OSError]()

    def wait(error: OSError) -> None:
        begun[:] = begun or [clock.seconds()]
        if not said and clock.seconds() - begun[0] >= UNSAID:
            said.append(error)
            say(error)

    return wait


def require_there(folder: Folder) -> None:
    """Raises: OSError: the folder is not there, or its storage does not answer. Object stores have no folders."""
    if not folder.exists() and folder.is_local:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder.uri)
    if folder.is_local:
        require_mounted(Path(folder.path))


def is_missing(folder: Folder, name: str, there: Folder | None = None) -> bool:
    """Whether a file is not there. Only a storage that is there is believed, and at a second look: it may have been away at
    the first.

    Args:
        there: a folder that is in the storage for sure, where `folder` may not be there yet.

    Raises:
        OSError: that folder is not there, or its storage does not answer.
    """
    if folder.exists(name):
        return False
    require_there(there or folder)
    return not folder.exists(name)


def second_look(action: Callable[[], Result], there: Folder) -> Result:
    """Do what fails where something is gone or damaged. That is believed at the second time: the storage may have been away
    for a moment.

    Args:
        there: a folder that is in the storage for sure.

    Raises:
        OSError: that folder is not there, or its storage does not answer.
        UserError, RunError: as the action, at the second time.
    """
    try:
        return action()
    except (UserError, RunError):
        require_there(there)
        return action()


def is_refusal(error: OSError) -> bool:
    """Whether a storage that is there says no: it is full or read-only, or this account may not write."""
    return error.errno in REFUSALS or is_denial(error)


def is_denial(error: OSError) -> bool:
    """Whether an object store denies access. It is believed once it has done so for a while, see `BELIEVED`."""
    return DENIED in str(error)
