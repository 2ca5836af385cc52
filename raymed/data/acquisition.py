"""How pictures came to be: their modality and their size in mm. What a model was trained on, and what it is asked about.

A network answers about any picture. What an X-ray model's answer about a CT is worth nobody knows, and the pixels that it
sees do not tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymed.data.prepared import Prepared
from raymed.data.sources import Slice

HOUNSFIELD = "CT"  # the modality whose values are Hounsfield units, windowed by us
PICTURE = "picture"  # of files that do not say what they show
SIZES = {"pixel_spacing": "pixel spacing", "slice_thickness": "slice thickness", "field_of_view": "field of view"}
BEYOND = 1.25  # a size is unlike those trained on when it is so many times smaller or larger than all of them


@dataclass(frozen=True)
class Acquisition:
    """What a model was trained on; empty where that is not known.

    Attributes:
        modalities: records by modality: CT, CR, DX, or picture.
        sizes: smallest and largest pixel_spacing, slice_thickness and field_of_view in mm, of files that say them.
    """

    modalities: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, prepared: Prepared, rows: np.ndarray) -> Acquisition:
        """That of rows of prepared data."""
        columns = prepared.index.select(["modality", *SIZES]).take(pa.array(rows, pa.int64()))
        modalities = Counter(name or PICTURE for name in columns["modality"].to_pylist())
        sizes = {}
        for name in SIZES:
            ends = pc.min_max(columns[name]).as_py()
            if ends["min"] is not None:
                sizes[name] = (ends["min"], ends["max"])
        return cls(dict(sorted(modalities.items())), sizes)

    @classmethod
    def of_slices(cls, slices: Iterable[Slice]) -> Acquisition:
        """That of slices in files."""
        slices = list(slices)
        sizes = {}
        for name in SIZES:
            values = [value for piece in slices if (value := getattr(piece.geometry, name)) is not None]
            if values:
                sizes[name] = (min(values), max(values))
        return cls(Counter(piece.modality or PICTURE for piece in slices), sizes)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Acquisition:
        """What `asdict` gave."""
        return cls(dict(values["modalities"]), {name: (low, high) for name, (low, high) in values["sizes"].items()})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def window(self, name: str) -> str:
        """What was done to the grey values, in words.

        Args:
            name: of the window that Hounsfield units get.
        """
        if not self.modalities or set(self.modalities) == {HOUNSFIELD}:
            return f"window {name}"
        if HOUNSFIELD in self.modalities:
            return f"window {name} over the CT, the other pictures with the grey values of their files"
        return "grey values as in the files: no window of ours, and of which nobody knows"

    def __str__(self) -> str:
        of_files = {PICTURE: "whose files do not say what they show"}
        kinds = ", ".join(f"{count} {of_files.get(name, name)}" for name, count in self.modalities.items())
        return "; ".join([kinds, *(f"{SIZES[name]} {_range(ends)} mm" for name, ends in self.sizes.items())])

    def unlike(self, asked: Acquisition) -> tuple[str, ...]:
        """In what slices differ from those trained on, in words that are the same for all patients alike."""
        if not self.modalities:
            return ()
        known, words = ", ".join(self.modalities), []
        for name in sorted(asked.modalities.keys() - self.modalities.keys()):
            words.append(f"{name}, and the model was trained on {known}{self._windows(name)}")
        for name, (low, high) in self.sizes.items():
            smallest, largest = asked.sizes.get(name, (low, high))
            trained = f"{_range((low, high))} mm that the model was trained on"
            if smallest * BEYOND < low:
                words.append(f"{SIZES[name]} below the {trained}")
            if largest > high * BEYOND:
                words.append(f"{SIZES[name]} above the {trained}")
        return tuple(words)

    def _windows(self, name: str) -> str:
        """What that means for the grey values, where Hounsfield units are on one side only."""
        if name == HOUNSFIELD:
            return ", whose grey values are no windowed Hounsfield units"
        return ", whose grey values are windowed Hounsfield units" if set(self.modalities) == {HOUNSFIELD} else ""


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low} to {high}"
