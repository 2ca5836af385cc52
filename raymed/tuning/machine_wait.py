"""Trials that wait for machines: told to a person once a minute, and ended with the search's time.

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

from raymed.cluster.autoscaler import machines_to_come
from raymed.training.fit import Resources

log = logging.getLogger("raymed")

PERIOD = 60.0  # seconds between two lines
NONE_CAME = "no machine came for its workers before the time was over"


class MachineWait(Stopper):
    """The trials under way that have reported nothing yet. While entered, a person is told of them."""

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
        """Whether time is over and every trial under way still waits. Ray Tune asks all the time."""
        return bool(self._waiting) and not self._training and self._is_over()

    def _tell(self) -> None:
        known: frozenset[int] = frozenset()
        while not self._leaving.wait(PERIOD):
            with contextlib.suppress(RayError):  # a cluster that ends is told of elsewhere
                if still := self.trials & known:
                    log.info("%s", self._line(len(still)))
            known = self.trials

    def _line(self, count: int) -> str:
        each = self._each
        wanted = f"{each.min_workers} x {each.cpus} CPUs" + (f" and {each.gpus:g} GPU" if each.gpus else "")
        wanted += " each, on one machine" if each.lie_together else " each"
        waiting = f"{count} trials wait for machines ({wanted})" if count > 1 else f"1 trial waits for machines ({wanted})"
        parts = [waiting, machines_to_come()]
        if self._end:
            parts.append(f"until {self._end}")
        return "; ".join(filter(None, parts))
