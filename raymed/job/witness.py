"""What is said of a job that is ended at once, by the system for want of memory or by Ray's core, and cannot say it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from raymed.storage import holder


@contextmanager
def witnessed(text: str) -> Iterator[None]:
    """While entered, a small process waits; if this one ends without a word, it prints `text` to standard error."""
    reading, writing = os.pipe()
    witness = os.fork()
    if not witness:
        os.close(writing)
        _wait(reading, text)

    def dismiss(code: int = 0, reason: str = "") -> None:
        os.write(writing, b".")

    holder.last_words.append(dismiss)
    try:
        yield
    finally:
        dismiss()
        holder.last_words.remove(dismiss)
        os.waitpid(witness, 0)
        os.close(reading)
        os.close(writing)


def _wait(reading: int, text: str) -> NoReturn:
    os.setsid()  # what the terminal sends to the job is not for it, nor what is sent to all processes
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.close(1)  # whoever reads the job's output does not wait for it
    if not os.read(reading, 1):
        os.write(2, f"{text}\n".encode())
    os._exit(0)
