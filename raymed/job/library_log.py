"""What libraries say: a terminal gets a line of each message, the rest goes to a file that the support bundle takes."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path

from raymed import clock
from raymed.job.mistakes import in_own_names
from raymed.language import Translated

log = logging.getLogger("raymed")

TRACES = ("Traceback (most recent call last)", '\n  File "')  # what only a traceback holds


class OneLine(Translated):
    """Our records as they are, and of a library's the line that says what it is about.

    Args:
        own: names of options, as `in_own_names` takes them.
    """

    def __init__(self, form: str, own: Mapping[str, str] | None = None) -> None:
        super().__init__(form)
        self._own = own or {}

    def format(self, record: logging.LogRecord) -> str:
        text = in_own_names(super().format(record), self._own)
        if record.name.partition(".")[0] in ("raymed", "py", "root") or "\n" not in text.strip():
            return text
        return f"{essence(record.getMessage())} (more in {keep_traceback(text)})"


class AskedAgain(logging.Filter):
    """Of what urllib3 says for each of its tries, in its own words, a terminal gets a line an absence; the file gets all."""

    ABSENCE = 600.0  # seconds after which a server that does not answer is spoken of again

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}  # when, by server

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not text.startswith("Retrying ("):
            return True
        kept, now = keep_traceback(text), clock.seconds()
        named = re.search(r"host='([^']*)', port=(\d+)", text)
        server = ":".join(named.groups()) if named else "a server"
        if now - self._said.get(server, -self.ABSENCE) >= self.ABSENCE:
            self._said[server] = now
            log.warning("%s does not answer: it is asked again, for some minutes (more in %s)", server, kept)
        return False


def take_over(name: str) -> None:
    """Let a library's logger, which writes to the terminal by itself, write as all others do."""
    logger = logging.getLogger(name)
    logger.handlers.clear()
    logger.propagate = True


def essence(text: str) -> str:
    """A message in one line: the error that a traceback ends with, or else its first line."""
    lines = [line for line in text.splitlines() if line.strip()]
    if any(trace in text for trace in TRACES):
        lines = [line for line in reversed(lines) if not line.startswith(" ")]
    return lines[0].strip() if lines else text


def keep_traceback(text: str) -> Path:
    """Append a text to this process's file."""
    path = _file()
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")
    return path


@cache
def _file() -> Path:
    return Path(tempfile.mkdtemp(prefix="raymed-")) / f"traceback-{datetime.now():%Y%m%d-%H%M%S}.txt"
