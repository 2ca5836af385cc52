"""How a search stops a run: the run asks after each epoch, and ends by itself.

Killing a stopped run would leave its workers' resources to a cleaner of Ray Train that asks the dashboard's server who is
dead: without a dashboard, or with two clusters on one machine, it gets no answer and the resources are lost to the search.
"""

from __future__ import annotations

import time
from typing import cast

import ray
from ray.actor import ActorHandle

ASK_SECONDS = 0.05


@ray.remote(num_cpus=0)
class Verdicts:
    """What a search decided about its trials' epochs."""

    def __init__(self) -> None:
        self._stop: dict[tuple[str, int], bool] = {}

    def give(self, name: str, epoch: int, stop: bool) -> None:
        self._stop[name, epoch] = stop

    def ask(self, name: str, epoch: int) -> bool | None:
        return self._stop.get((name, epoch))


def wait_for_verdict(verdicts: ActorHandle, name: str, epoch: int) -> bool:
    """Whether the run `name` is to stop after `epoch`; waits until the search has decided.

    Raises:
        ray.exceptions.RayActorError: the search is gone.
    """
    stop: bool | None = None
    while stop is None:
        stop = cast(bool | None, ray.get(verdicts.ask.remote(name, epoch)))
        time.sleep(ASK_SECONDS)
    return stop
