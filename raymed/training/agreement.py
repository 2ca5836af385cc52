"""What all workers do in the storage, or none: each waits for the others, and what one cannot do is raised on all."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from raymed.errors import CommonError, RunError, UserError
from raymed.storage.availability import once, wait_for
from raymed.storage.folder import Folder
from raymed.training.settings import TrainSettings
from raymed.training.stall import StallGuard

Result = TypeVar("Result")


@dataclass(frozen=True)
class Agreement:
    """Among the workers of a run.

    Attributes:
        folder: what they reach, the run's or another.
        minutes: how long a storage that is away is waited for.
        stall: told that waiting is no hang.
        tell: says to the job what a worker waits for; its machine alone may lack the storage.
        group: of all workers; by default the one that sums gradients, too.
    """

    folder: Folder
    minutes: float
    stall: StallGuard
    tell: Callable[[str], None]
    group: dist.ProcessGroup | None = None

    @classmethod
    def early(cls, folder: Folder, train: TrainSettings, tell: Callable[[str], None]) -> Agreement:
        """Before a run's steps: none is watched yet, and NCCL is not used yet."""
        unwatched = StallGuard(0, folder, dist.get_rank())
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=train.collective_seconds))
        return cls(folder, train.storage_minutes, unwatched, tell, group)

    def attempt(self, action: Callable[[], Result]) -> Result:
        """What comes of an action in the storage on this worker, in a thread beside the run. A storage that is away is
        waited for; whether the run itself hangs meanwhile is seen all the same.

        Raises:
            StorageError: it refuses, or is away for too long.
        """
        return wait_for(action, self.folder, self.minutes, self._waiting(lambda: None))

    def reach(self, action: Callable[[], Result]) -> Result:
        """What comes of an action in the storage, once every worker has done it. A storage that is away is waited for.

        Raises:
            UserError, RunError: on all workers, what one of them meets: alone it would leave the others waiting for it.
        """
        done: list[Result] = []
        problems: list[Any] = [None] * dist.get_world_size()
        own: UserError | RunError | None = None
        try:
            done.append(wait_for(action, self.folder, self.minutes, self._waiting(self.stall.step)))
        except (UserError, RunError) as error:
            own = error
        self.may_wait()
        dist.all_gather_object(problems, own and (own, socket.gethostname()), self.group)
        self.stall.step()
        if any(problems):
            raise _foremost(problems) from own
        return done[0]

    def may_wait(self) -> None:
        """What this worker comes to may take as long as another worker, or a thread, still waits for the storage."""
        self.stall.step(60 * self.minutes)

    def _waiting(self, step: Callable[[], None]) -> Callable[[OSError], None]:
        """What is done while this worker waits."""
        begun = list[datetime]()

        def say(error: OSError) -> None:
            until = begun[0] + timedelta(minutes=self.minutes)
            self.tell(
                f"worker {dist.get_rank()} on {socket.gethostname()} does not see {self.folder.uri} ({error}), and "
                f"waits for it until {until:%H:%M}. It must be there on every machine of the cluster, at the same place"
            )

        said = once(say)

        def wait(error: OSError) -> None:
            begun[:] = begun or [datetime.now()]
            step()
            said(error)

        return wait


def _foremost(problems: Sequence[tuple[UserError | RunError, str] | None]) -> UserError | RunError:
    """What all workers raise: what ends the whole search goes first. It names who met it, where not all did.

    Args:
        problems: what each worker met, if anything, and on which machine.
    """
    met = [(*each, rank) for rank, each in enumerate(problems) if each]
    error, host, rank = next((each for each in met if isinstance(each[0], CommonError)), met[0])
    return error if len(met) == len(problems) else type(error)(f"worker {rank} on {host}: {error}")
