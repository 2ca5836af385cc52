"""What a cluster costs: by the prices that a person states, for the provider's change from hour to hour."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from raymed.errors import UserError

VARIABLE = "RAYMED_PRICES"


@dataclass(frozen=True)
class Prices:
    """For an hour, in whatever money they were stated.

    Attributes:
        head: of the head.
        gpu: of a GPU with its share of a machine.
        date: the day they are of, as it was written; empty where that was not said.
    """

    head: float
    gpu: float
    date: str = ""

    @classmethod
    def stated(cls) -> Prices | None:
        """Those of ``RAYMED_PRICES`` (``head=0.50,GPU=0.45,DATE=2026-11-29``); None where it is not set.

        Raises:
            UserError: the variable is not of that form.
        """
        text, number = os.environ.get(VARIABLE, ""), r"(\d+(?:\.\d+)?)"
        if not text:
            return None
        match = re.fullmatch(rf"head={number},GPU={number}(?:,DATE=(\d{{4}}-\d\d-\d\d))?", text)
        if match is None:
            raise UserError(
                f"{VARIABLE} is {text!r}: write it as head=0.50,GPU=0.45,DATE=2026-11-29, what each costs an hour, and the "
                "day on which you looked"
            )
        return cls(float(match[1]), float(match[2]), match[3] or "")

    def of(self, gpus: int, hours: float) -> str:
        """What so many GPUs cost in a time at most, for a person to read.

        Args:
            hours: infinity for a time without an end.
        """
        an_hour = self.head + gpus * self.gpu
        rates = f"head {self.head:g}, {gpus} GPU{'s' if gpus > 1 else ''} at {self.gpu:g} an hour"
        rates += self._of_day
        return f"{an_hour:.2f} an hour ({rates})" if hours == float("inf") else f"at most {an_hour * hours:.2f} ({rates})"

    def paid(self, gpu_hours: float, hours: float) -> str:
        """What so many hours of GPUs cost, beside a head in a time, for a person to read."""
        return (
            f"{gpu_hours * self.gpu + hours * self.head:.2f} (head {self.head:g} x {hours:.2f} h, GPU {self.gpu:g} x "
            f"{gpu_hours:.2f} h{self._of_day}), and besides: judging, refits, what machines waited, the storage"
        )

    @property
    def _of_day(self) -> str:
        return f"; prices of {self.date}" if self.date else ""
