"""Leaving: Ctrl-C and SIGTERM (``ray job stop``) mean the same in every phase of a job, which is gone within a deadline.

The first one interrupts the job's main thread; while runs train, `Interrupt` lets them save a checkpoint first. What does
not end by then, a library's thread or its exit handler, is left to itself.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from raymed.storage import holder

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEADLINE = 30.0  # seconds from the interrupt to the end
INTERRUPTED = 130  # exit code


def ending(seconds: float, last_words: str) -> threading.Timer:
    """A timer, not started yet, at whose end the process ends, whatever its threads do, and has said its last words."""
    timer = threading.Timer(seconds, _leave, (last_words,))
    timer.daemon = True
    return timer


@contextmanager
def departing(last_words: str) -> Iterator[None]:
    """While entered, the first signal interrupts the main thread, which calls this. The second, or `DEADLINE`, ends the job.

    Args:
        last_words: what is printed at that end.

    Raises:
        KeyboardInterrupt: a signal came.
    """
    leaving = ending(DEADLINE, last_words)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if leaving.is_alive():
            ending(0.0, last_words).start()  # from a thread: what the signal came into may be a line that is being printed
            return
        leaving.start()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        if not leaving.is_alive():  # the signal came to `Interrupt`; what still runs at exit has the same deadline
            leaving.start()
        raise
    finally:
        if not leaving.is_alive():  # else the process is about to end, and is to
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Puts handlers back that a library replaces by its own: Ray's of SIGTERM exits into a shutdown that may hang."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        if callable(handler) and handler is not signal.default_int_handler:
            signal.signal(number, handler)


def _leave(last_words: str) -> None:
    holder.end(INTERRUPTED, last_words)
