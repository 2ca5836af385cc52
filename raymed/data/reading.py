"""Reading slices takes a while: how long it will, before it begins."""

from __future__ import annotations

import time
from dataclasses import replace

from raymed.data.image import ImageSettings
from raymed.data.sources import Study, load_study
from raymed.data.survey import Survey

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
