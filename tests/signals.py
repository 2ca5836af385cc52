"""A recipe that sends a real signal while it trains, so that tests can hit a run at a known place."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raymed.data.record import Record
from raymed.recipes.lung import LungRecipe
from raymed.recipes.recipe import Batch, TrainingPass

WAIT_SECONDS = 4.0  # for the steps before to be taken, and for the signal to arrive


@dataclass(frozen=True)
class Signalling(LungRecipe):
    """Sends `signal` once, when it encodes a certain micro-batch of the second epoch.

    Attributes:
        at: which one, counted from 1 over all processes.
        count: path of the file that counts that epoch's micro-batches; the same name with ``.sent`` tells when.
        target: process that is told; 0 for the worker itself.
        signal: what it is told.
    """

    at: int = 11
    count: str = ""
    target: int = 0
    signal: int = signal.SIGTERM

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        if training is not None and training.epoch == 1:
            with Path(self.count).open("ab") as file:
                file.write(b".")
            if Path(self.count).stat().st_size == self.at:
                time.sleep(WAIT_SECONDS)
                Path(self.count).with_suffix(".sent").touch()
                os.kill(self.target or os.getpid(), self.signal)
                time.sleep(WAIT_SECONDS)
        return super().encode(records, training)
