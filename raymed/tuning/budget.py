"""The budget of a search: trials, epochs, and the time at which it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from raymed.errors import UserError


@dataclass(frozen=True)
class Budget:
    """When a search ends: at whichever limit comes first.

    Attributes:
        trials: most trials.
        epochs: most epochs over all trials (0 = no limit).
        deadline: Unix time after which no trial starts and running ones stop at their next epoch (0 = none).
        timezone: that a person reads times in; empty for this machine's.
    """

    trials: int
    epochs: int = 0
    deadline: float = 0.0
    timezone: str = ""

    @property
    def time_is_over(self) -> bool:
        return bool(self.deadline) and time.time() >= self.deadline

    @property
    def end(self) -> str:
        """The deadline as a person reads it, with its zone; empty without one."""
        end = datetime.fromtimestamp(self.deadline, UTC).astimezone(_zone(self.timezone))
        return f"{end:%Y-%m-%d %H:%M %Z}" if self.deadline else ""


def deadline(hours: float, until: str, timezone: str = "") -> float:
    """Unix time at which a search that starts now ends: after `hours`, or at the next ``HH:MM`` (0 = never).

    Args:
        timezone: of `until`; empty for this machine's.

    Raises:
        UserError: `until` is not a time of day, or the zone is unknown.
    """
    ends = [time.time() + hours * 3600] if hours else []
    zone = _zone(timezone)
    if until:
        try:
            clock = datetime.strptime(until, "%H:%M").time()
        except ValueError as error:
            raise UserError(f"--until {until!r} is not a time of day such as 07:00") from error
        now = datetime.now(zone)
        end = datetime.combine(now.date(), clock, zone)
        ends.append((end if end > now else end + timedelta(days=1)).timestamp())
    return min(ends, default=0.0)


def _zone(name: str) -> tzinfo | None:
    """The zone of that name; None for this machine's."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"--timezone {name!r} is no time zone; they are called such as Europe/Berlin or UTC") from error
