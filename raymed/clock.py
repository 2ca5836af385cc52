"""What time it is: that which people read and set, and those which nobody sets."""

from __future__ import annotations

import time


def now() -> float:
    """Unix time, as this machine believes it to be; it may be set at any moment."""
    return time.time()


def seconds() -> float:
    """Seconds by a clock of this process's machine that nobody sets; it stands still while the machine sleeps."""
    return time.monotonic()


def uptime() -> float:
    """Seconds since this machine started, its sleep included where the system counts it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def sleep(duration: float) -> None:
    """Wait for so many seconds."""
    time.sleep(duration)
