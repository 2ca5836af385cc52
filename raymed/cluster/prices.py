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
    """

    head: float
    gpu: float

    @classmethod
    def stated(cls) -> Prices | None:
        """Those of ``RAYMED_PRICES`` (``head=0.50,GPU=0.45``); None where it is not set.

        Raises:
            UserError: the variable is not of that form.
        """
        text, number = os.environ.get(VARIABLE, ""), r"(\d+(?:\.\d+)?)"
        if not text:
            return None
        match = re.fullmatch(f"head={number},GPU={number}", text)
        if match is None:
            raise UserError(f"{VARIABLE} is {text!r}: write it as head=0.50,GPU=0.45, what each costs an hour")
        return cls(float(match[1]), float(match[2]))

    def of(self, gpus: int, hours: float) -> str:
        """What so many GPUs cost in a time at most, for a person to read.

        Args:
            hours: infinity for a time without an end.
        """
        an_hour = self.head + gpus * self.gpu
        rates = f"head {self.head:g}, {gpus} GPU{'s' if gpus > 1 else ''} at {self.gpu:g} an hour"
        return f"{an_hour:.2f} an hour ({rates})" if hours == float("inf") else f"at most {an_hour * hours:.2f} ({rates})"
