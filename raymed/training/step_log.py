"""Figures of single steps, told of while an epoch is under way: a report every few seconds, with a row for each step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from raymed.recipes.recipe import TOKENS
from raymed.training.means import means
from raymed.training.step_sums import StepFigures

STEPS = "steps"  # rows of steps, among what a worker reports
TOTAL_STEPS = "total_steps"  # of the whole run; beside them

PAUSE = 5.0  # seconds between two reports: Ray Train looks for them every half second, and a worker waits until it has
Item = TypeVar("Item")


class StepLog:
    """How fast a worker trains, from one validation to the next and step by step."""

    def __init__(self) -> None:
        self._told = self._ended = time.perf_counter()
        self.begin()

    def begin(self) -> None:
        """Training goes on after a validation."""
        self._begun = self._read = time.perf_counter()
        self._paused = self._begun - self._ended
        self._waited, self._records, self._unread, self._tokens = 0.0, 0, 0, 0.0

    def waiting(self, batches: Iterator[Item]) -> Item | None:
        """The next of them, or None at the end; the time counts as a wait for data."""
        asked = time.perf_counter()
        item = next(batches, None)
        self._waited += time.perf_counter() - asked
        return item

    def add(self, records: int) -> None:
        """A step over so many records was done."""
        self._records += records
        self._unread += records

    def rows(self, figures: Sequence[StepFigures]) -> list[dict[str, float]]:
        """A row for each step since the last call: ``global_step``, which counts it, and metrics; speeds are their mean."""
        now = time.perf_counter()
        seconds, records = now - self._read, self._unread
        self._read, self._unread = now, 0
        tokens = sum(step.sums[TOKENS][0] for step in figures if TOKENS in step.sums)
        self._tokens += tokens
        speeds = {"records_per_second": records / seconds} | ({"tokens_per_second": tokens / seconds} if tokens else {})
        return [
            {
                "global_step": step.step + 1,
                **{f"train_{name}": mean for name, mean in means(step.sums).items()},
                "lr": step.lr,
                "gradient_norm": step.gradient_norm,
                "seconds": seconds / len(figures),
                **speeds,
            }
            for step in figures
        ]

    def end(self) -> dict[str, float]:
        """Training pauses for a validation: its seconds, those of the validation and the checkpoint before it, records and
        tokens a second, and the share of the time that data were waited for."""
        self._ended = time.perf_counter()
        seconds = self._ended - self._begun
        return {
            "seconds": seconds,
            "pause_seconds": self._paused,
            "records_per_second": self._records / seconds,
            **({"tokens_per_second": self._tokens / seconds} if self._tokens else {}),
            "data_wait": self._waited / seconds,
        }

    @property
    def is_due(self) -> bool:
        """Whether the last report was long enough ago."""
        return time.perf_counter() - self._told >= PAUSE

    def told(self) -> None:
        """There is a report now."""
        self._told = time.perf_counter()
