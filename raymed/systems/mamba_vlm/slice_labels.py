"""Marks of single slices in reports, such as (IM12): a picture does not show its number, so a model can only copy or invent
them, and ones that were trained too little write little else."""

from __future__ import annotations

import re

_IMAGE = r"(?:im(?:g|age)?|slice|图像?|层面?)\s*[.:：#-]?\s*\d+"
_SERIES = r"(?:se(?:r|ries)?\s*[.:：#-]?\s*\d+\s*[,，;；/:：-]?\s*)?"
_AND = r"\s*[-~–—、,，;；/&]\s*"
LABEL = re.compile(
    rf"\s*[(（\[【]\s*{_SERIES}{_IMAGE}(?:{_AND}(?:{_SERIES}{_IMAGE}|\d+))*\s*[)）\]】]",
    re.IGNORECASE,
)


def without_slice_labels(text: str) -> str:
    """The text without bracketed numbers of slices; whatever else is in brackets stays."""
    return LABEL.sub("", text).strip()
