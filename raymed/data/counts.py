"""Counts per class, or data set, and split, as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping

from raymed.data.publish import UNSPLIT
from raymed.data.split import SPLITS

Counts = Mapping[str, Mapping[str, int]]


def table(patients: Counts, slices: Counts | None = None, head: str = "") -> list[str]:
    """Patients, and in brackets slices, per class and split; or another count, under its own heading."""
    order = [split for split in (*SPLITS, UNSPLIT) if any(split in counts for counts in patients.values())]
    head = head or ("patients (slices)" if slices else "patients")
    lines = [f"{head:<20}" + "".join(f"{split:>16}" for split in order)]
    for name, counts in patients.items():
        cells = [f"{counts.get(split, 0)}" + (f" ({slices[name].get(split, 0)})" if slices else "") for split in order]
        lines.append(f"{name:<20}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def left_out(patients: Mapping[str, str]) -> list[str]:
    """The patients without a usable slice, a line each with the reason, below a line that counts them."""
    head = f"patients without a usable slice: {len(patients) or 'none'}"
    return [head, *(f"  {patient}: {reason}" for patient, reason in patients.items())]
