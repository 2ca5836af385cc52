"""The budget of a search: trials, epochs, and the time at which it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from raymed import clock
from raymed.errors import UserError
from raymed.language import say


@dataclass(frozen=True)
class Budget:
    """When a search ends: at whichever limit comes first.

    Attributes:
        trials: most trials.
        epochs: most epochs over all trials (0 = no limit).
        deadline: Unix time by which the winner is to be judged, and trained again; see `Timetable` (0 = none).
        timezone: that a person reads times in; empty for this machine's.
        seconds: most seconds up to that, over all processes that go on with the search (0 = no limit).
        until: the time of day that was asked for, of which `deadline` is the next.
        ends: when `seconds` are over, by a clock of this process that nobody sets; see `begun`.
        closes: when `deadline` comes, by another one, which goes on while the machine sleeps.
        refit: what the winner is trained on again within that time; see `SearchOptions`.
    """

    trials: int
    epochs: int = 0
    deadline: float = 0.0
    timezone: str = ""
    seconds: float = 0.0
    until: str = ""
    ends: float = math.inf
    closes: float = math.inf
    refit: str = "none"

    def begun(self, spent: float = 0.0) -> Budget:
        """As it is for a process that goes on with a search after `spent` seconds: from now on no set clock matters."""
        ends = clock.seconds() + self.seconds - spent if self.seconds else math.inf
        return replace(self, ends=ends, closes=clock.uptime() + self.deadline - clock.now() if self.deadline else math.inf)

    @property
    def time_is_over(self) -> bool:
        return self.seconds_left <= 0

    @property
    def seconds_left(self) -> float:
        """Until time is over; infinity without a limit."""
        has_begun = not math.isinf(min(self.ends, self.closes))
        begun = self if has_begun else self.begun()
        return min(begun.ends - clock.seconds(), begun.closes - clock.uptime())

    @property
    def plan(self) -> str:
        """What is done by the deadline, for a person to read."""
        if self.refit != "none":
            return say(
                "the search ends in time for judging the winner, and its training again, by {end}; the leader may end its "
                "schedule first",
                end=self.end,
            )
        return say(
            "the search ends in time for judging the winner by {end}; the leader may end its schedule first", end=self.end
        )

    @property
    def end(self) -> str:
        """When time is over, as a person reads it, with the zone; empty without a limit."""
        if math.isinf(self.seconds_left):
            return ""
        end = datetime.fromtimestamp(round(clock.now() + self.seconds_left), UTC).astimezone(_zone(self.timezone))
        return f"{end:%Y-%m-%d %H:%M %Z}"

    def kept(self, earlier: Budget) -> Budget:
        """With the deadline that the same `until` had when the search began: the same command means the same search."""
        same = (self.until, self.timezone) == (earlier.until, earlier.timezone)
        return replace(self, deadline=earlier.deadline) if self.until and same else self

    def exceeds(self, other: Budget) -> bool:
        """Whether a search that the other budget has ended may go on with this one."""
        limits = ((self.epochs, other.epochs), (self.seconds, other.seconds), (self.deadline, other.deadline))
        return self.trials > other.trials or any(before and (not now or now > before) for now, before in limits)

    def to_dict(self) -> dict[str, Any]:
        """What is the same in every process."""
        return {name: value for name, value in asdict(self).items() if name not in ("ends", "closes")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Budget:
        return cls(**values)


def deadline(until: str, timezone: str = "") -> float:
    """Unix time of the next ``HH:MM``; 0 where `until` is empty.

    Args:
        timezone: of `until`; empty for this machine's.

    Raises:
        UserError: `until` is not a time of day, or the zone is unknown.
    """
    zone = _zone(timezone)
    if not until:
        return 0.0
    try:
        time_of_day = datetime.strptime(until, "%H:%M").time()
    except ValueError as error:
        raise UserError(f"--until {until!r} is not a time of day such as 07:00") from error
    now = datetime.fromtimestamp(clock.now(), zone)
    end = datetime.combine(now.date(), time_of_day, zone)
    return (end if end > now else end + timedelta(days=1)).timestamp()


def _zone(name: str) -> tzinfo | None:
    """The zone of that name; None for this machine's."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"--timezone {name!r} is no time zone; they are called such as Europe/Berlin or UTC") from error
