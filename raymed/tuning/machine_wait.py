"""Trials that wait for machines: told to a person once a minute, and ended with the search's time, or where none can come.

A trial whose workers no machine has room for reports nothing, and nobody else would look at the clock for it: Ray Train
waits for the machines, for ever.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ray.exceptions import RayError
from ray.tune import Stopper

from raymed.cluster import connection as cluster
from raymed.cluster.autoscaler import NONE_CAN_COME, machines_to_come, none_can_come
from raymed.training.fit import Resources
from raymed.tuning import room

log = logging.getLogger("raymed")

PERIOD = 60.0  # seconds between two lines
NONE_CAME = "no machine came for its workers before the time was over"


class MachineWait(Stopper):
    """The trials under way that have reported nothing yet. While entered, a person is told of them.

    Attributes:
        gave_up: what to tell the user, once no machine can come for those that wait, and nothing trains.
    """

    def __init__(self, each: Resources, is_over: Callable[[], bool], end: str) -> None:
        """
        Args:
            each: what every trial waits for.
            is_over: whether the time for searching is over.
            end: when it will be, as a person reads it; empty without a limit.
        """
        self._each, self._is_over, self._end = each, is_over, end
        self._waiting: set[int] = set()
        self._training: set[int] = set()
        self._leaving = threading.Event()
        self.gave_up = ""

    def __enter__(self) -> MachineWait:
        threading.Thread(target=self._tell, name="machine wait", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leaving.set()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for `StudySearcher`."""
        return {}

    @property
    def trials(self) -> frozenset[int]:
        """The numbers of those that wait."""
        return frozenset(self._waiting)

    def begins(self, number: int) -> None:
        """A trial's driver was started, or its workers were lost: from now on they are waited for."""
        self._waiting.add(number)
        self._training.discard(number)

    def reports(self, number: int) -> None:
        """A trial's workers were heard of."""
        self._waiting.discard(number)
        self._training.add(number)

    def ends(self, number: int) -> None:
        """A trial is under way no more."""
        self._waiting.discard(number)
        self._training.discard(number)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by what it reports: see `StudyScheduler`."""
        return False

    def stop_all(self) -> bool:
        """Whether every trial under way waits, and time is over or no machine can come. Ray Tune asks all the time."""
        return bool(self._waiting) and not self._training and bool(self.gave_up or self._is_over())

    def _tell(self) -> None:
        known: frozenset[int] = frozenset()
        while not self._leaving.wait(PERIOD):
            with contextlib.suppress(RayError):  # a cluster that ends is told of elsewhere
                if still := self.trials & known:
                    log.info("%s", self._line(len(still)))
                    self.gave_up = self._why_none_comes()
            known = self.trials

    def _why_none_comes(self) -> str:
        """Empty where one may come, or is there: for the next trial, once those that train have ended."""
        if not none_can_come() or room.fitting_runs(self._each, cluster.resources()):
            return ""
        return NONE_CAN_COME.format(why=machines_to_come())

    def _line(self, count: int) -> str:
        each = self._each
        wanted = f"{each.min_workers} x {each.cpus} CPUs" + (f" and {each.gpus:g} GPU" if each.gpus else "")
        wanted += " each, on one machine" if each.lie_together else " each"
        waiting = f"{count} trials wait for machines ({wanted})" if count > 1 else f"1 trial waits for machines ({wanted})"
        parts = [waiting, machines_to_come()]
        if self._end:
            parts.append(f"until {self._end}")
        return "; ".join(filter(None, parts))
