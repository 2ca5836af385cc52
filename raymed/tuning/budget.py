"""The budget of a search: trials, epochs, and the time at which it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from raymed.errors import UserError


@dataclass(frozen=True)
class Budget:
    """When a search ends: at whichever limit comes first.

    Attributes:
        trials: most trials.
        epochs: most epochs over all trials (0 = no limit).
        deadline: Unix time after which no trial starts and running ones stop at their next epoch (0 = none).
    """

    trials: int
    epochs: int = 0
    deadline: float = 0.0

    @property
    def time_is_over(self) -> bool:
        return bool(self.deadline) and time.time() >= self.deadline


def deadline(hours: float, until: str) -> float:
    """Unix time at which a search that starts now ends: after `hours`, or at the next ``HH:MM`` (0 = never).

    Raises:
        UserError: `until` is not a time of day.
    """
    ends = [time.time() + hours * 3600] if hours else []
    if until:
        try:
            clock = datetime.strptime(until, "%H:%M").time()
        except ValueError as error:
            raise UserError(f"--until {until!r} is not a time of day such as 07:00") from error
        end = datetime.combine(datetime.now().date(), clock)
        ends.append((end if end > datetime.now() else end + timedelta(days=1)).timestamp())
    return min(ends, default=0.0)
