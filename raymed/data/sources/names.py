"""The options that say how a source is read are called ``--source.format`` and so on in every job.

Jobs that prepare a source have them at the top (``--format``), which they understand as well.
"""

from __future__ import annotations

from raymed.data.sources.listing import SourceSettings
from raymed.data.sources.samples import SampleSettings
from raymed.job.command_line import Alias, Aliases
from raymed.job.mistakes import kinds


def _under_source(kind: type) -> Aliases:
    return {f"source.{name}".replace("_", "-"): Alias(name) for name in kinds(kind)}


SOURCE_NAMES = _under_source(SourceSettings)
SAMPLE_NAMES = _under_source(SampleSettings)
