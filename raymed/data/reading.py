"""Reading slices takes a while: how long it will, before it begins and on the way."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from raymed.data.image import ImageSettings
from raymed.data.sources import Study, load_study
from raymed.data.survey import Survey

log = logging.getLogger("raymed")

PROGRESS_SECONDS = 5.0
SAMPLE = 4  # files a study that an estimate opens


def seconds_per_slice(found: Survey, image: ImageSettings) -> float:
    """How long one CPU takes to decode and resize a slice, measured on a few files of the first, middle and last study."""
    few = [_few_files(found.studies[place]) for place in (0, len(found.studies) // 2, -1)]
    load_study(found.listing.root, few[0], image)  # the first picture pays for loading the decoder
    start = time.perf_counter()
    for study in few:
        load_study(found.listing.root, study, image)
    return (time.perf_counter() - start) / sum(len(study.slices) for study in few)


def _few_files(study: Study) -> Study:
    """With whole files: a volume is read as a whole, whatever is wanted of it."""
    paths = list(dict.fromkeys(piece.path for piece in study.slices))[:SAMPLE]
    return replace(study, slices=tuple(piece for piece in study.slices if piece.path in paths))


class ReadingProgress:
    """Says how far the reading of slices has come, and, from the second shard on, how long it will take."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._first: tuple[int, float] | None = None
        self._said = time.monotonic()

    def add(self, slices: int) -> None:
        self._done += slices
        now = time.monotonic()
        if self._first is None:
            self._first = self._done, now
        elif now - self._said >= PROGRESS_SECONDS:
            self._said = now
            rate = (self._done - self._first[0]) / (now - self._first[1])
            left = (self._total - self._done) / rate
            log.info("read %d of %d, about %.0f s left", self._done, self._total, left)
