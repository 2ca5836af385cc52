"""What makes a recipe send a real signal while it trains, so that tests can hit a run at a known place."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from raymed.data.record import Record
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.training.checkpoint import step_of
from raymed.training.loop import SAVED


@dataclass(frozen=True)
class Signalling:
    """Before a recipe among a class's bases: sends `signal` once, when it encodes a certain micro-batch of the second epoch.

    Attributes:
        at: which one, counted from 1 over all processes.
        count: path of the file that counts that epoch's micro-batches; the same name with ``.sent`` tells when.
        target: process that is told; 0 for the worker itself.
        signal: what it is told.
        wait: seconds before, for the earlier steps to be taken, and after, for the signal to arrive.
    """

    at: int = 11
    count: str = ""
    target: int = 0
    signal: int = signal.SIGTERM
    wait: float = 4.0

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        if training is not None and training.epoch == 1:
            with Path(self.count).open("ab") as file:
                file.write(b".")
            if Path(self.count).stat().st_size >= self.at and self._first():
                time.sleep(self.wait)
                Path(self.count).with_suffix(".sent").touch()  # again: this is the time that counts
                os.kill(self.target or os.getpid(), self.signal)
                time.sleep(self.wait)
        return super().encode(records, training)  # type: ignore[misc, no-any-return]

    def _first(self) -> bool:
        """Whether no process was here before: two that count at once may both see one too many."""
        try:
            Path(self.count).with_suffix(".sent").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Committed(UserCallback):
    """Notes when each checkpoint was in the storage, with its step: a line ``TIME STEP`` in the file `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if SAVED in metrics[0]:
            with Path(self.path).open("a") as file:
                file.write(f"{time.time()} {step_of(metrics[0][SAVED])}\n")
