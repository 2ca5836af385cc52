"""The options that say how a source is read are called ``--source.format`` and so on in every job.

Jobs that prepare a source have them at the top (``--format``), which they understand as well.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator

from raymed.data.sources.listing import SourceSettings
from raymed.data.sources.samples import SampleSettings
from raymed.job import Alias, Aliases


def _options(kind: type) -> Iterator[str]:
    """Dotted names of all options of a dataclass."""
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[each.name]):
            yield from (f"{each.name}.{name}" for name in _options(typing.cast(type, hints[each.name])))
        else:
            yield each.name


def _under_source(kind: type) -> Aliases:
    return {f"source.{name}".replace("_", "-"): Alias(name) for name in _options(kind)}


SOURCE_NAMES = _under_source(SourceSettings)
SAMPLE_NAMES = _under_source(SampleSettings)
