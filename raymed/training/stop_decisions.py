"""How a search stops a run: the run asks after each epoch, and ends by itself. What workers say besides comes the same way.

Killing a stopped run would leave its workers' resources to a cleaner of Ray Train that asks the dashboard's server who is
dead: without a dashboard, or with two clusters on one machine, it gets no answer and the resources are lost to the search.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, cast

import ray
from ray.actor import ActorHandle

from raymed.cluster.connection import HEAD


# Each worker that was ever started leaves a question that waits, and 1,000 would be all that are heard. If the process is
# lost, Ray starts it again and asks it the same questions; what it had been told, `Reminder` tells it.
@ray.remote(num_cpus=0, max_concurrency=100_000, max_restarts=-1, max_task_retries=-1)  # type: ignore[call-overload]
class StopDecisions:
    """What a search decided about its trials' epochs, and whether its job is being stopped."""

    def __init__(self) -> None:
        self._stop: dict[tuple[str, int], bool] = {}
        self._given = asyncio.Condition()
        self._leaving = asyncio.Event()
        self._said: asyncio.Queue[str] = asyncio.Queue()

    async def give(self, name: str, epoch: int, stop: bool) -> None:
        async with self._given:
            self._stop[name, epoch] = stop
            self._given.notify_all()

    async def ask(self, name: str, epoch: int) -> bool:
        """Whether the run `name` is to stop after `epoch`, as soon as the search has decided."""
        async with self._given:
            await self._given.wait_for(lambda: (name, epoch) in self._stop)
        return self._stop[name, epoch]

    @ray.method(max_task_retries=0)
    async def until_lost(self) -> None:
        """Never answers: whoever asks is told by the error that this process was lost."""
        await asyncio.Event().wait()

    async def leave(self) -> None:
        """Ask all runs to save a checkpoint and end."""
        self._leaving.set()

    async def told_to_leave(self) -> None:
        """Answers when `leave` was called."""
        await self._leaving.wait()

    async def tell(self, text: str) -> None:
        """Something that a person at the job should read."""
        await self._said.put(text)

    async def hear(self) -> str:
        """The next of these, as soon as there is one."""
        return await self._said.get()


@contextlib.contextmanager
def deciding() -> Iterator[ActorHandle]:
    """The actor of a search, or of a refit, on the head. It ends with what uses it, though questions may wait; after an
    error it goes with the job."""
    decisions: Any = StopDecisions
    actor = decisions.options(resources=HEAD).remote()
    yield actor
    ray.kill(actor)


class Hearing:
    """The job's ear for what workers say."""

    def __init__(self, stop_decisions: ActorHandle) -> None:
        self._verdicts = stop_decisions
        self._next: ray.ObjectRef[str] = stop_decisions.hear.remote()

    def newest(self) -> str:
        """What was said, once; empty where nothing was, or Ray has ended."""
        try:
            if not ray.wait([self._next], timeout=0)[0]:
                return ""
            text = ray.get(self._next)
            self._next = self._verdicts.hear.remote()
            return text
        except Exception:
            return ""


def wait_for_verdict(stop_decisions: ActorHandle, name: str, epoch: int) -> bool:
    """Whether the run `name` is to stop after `epoch`; waits until the search has decided.

    Raises:
        ray.exceptions.RayActorError: the search is gone.
    """
    return cast(bool, ray.get(stop_decisions.ask.remote(name, epoch)))
