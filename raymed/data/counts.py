"""Counts per class, or data set, and split, as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raymed.data.publish import UNSPLIT
from raymed.data.split import SPLITS
from raymed.language import at_right, padded, say

if TYPE_CHECKING:
    from raymed.data.prepare import PrepareResult

Counts = Mapping[str, Mapping[str, int]]


def table(patients: Counts, slices: Counts | None = None, head: str = "") -> list[str]:
    """Patients, and in brackets slices, per class and split; or another count, under its own heading."""
    order = [split for split in (*SPLITS, UNSPLIT) if any(split in counts for counts in patients.values())]
    head = head or (say("patients (slices)") if slices else say("patients"))
    lines = [padded(head, 20) + "".join(at_right(say(split), 16) for split in order)]
    for name, counts in patients.items():
        cells = [f"{counts.get(split, 0)}" + (f" ({slices[name].get(split, 0)})" if slices else "") for split in order]
        lines.append(padded(name, 20) + "".join(f"{cell:>16}" for cell in cells))
    return lines


def left_out(patients: Mapping[str, str]) -> list[str]:
    """The patients without a usable slice, a line each with the reason, below a line that counts them."""
    head = say("patients without a usable slice: {count}", count=len(patients) or say("none"))
    return [head, *(f"  {patient}: {reason}" for patient, reason in patients.items())]


def closing(result: PrepareResult) -> list[str]:
    """The last lines about prepared data: who is left out, who shares pictures, what the guard proved, where they lie."""
    manifest = result.prepared.manifest
    return [
        *left_out(manifest.left_out),
        say(
            "patients that share near-duplicate pictures: {count} groups",
            count=len(manifest.near_duplicates),
        ),
        str(result.guard),
        say("prepared data: {folder} (digest {digest})", folder=result.prepared.folder.uri, digest=manifest.digest),
    ]


def facts(result: PrepareResult) -> dict[str, Any]:
    """The same for ``--json``."""
    prepared, known = result.prepared, ("digest", "patients", "sources", "quarantined", "left_out")
    done = {"out": prepared.folder.uri, "new": result.new, "kept": result.kept}
    return done | {name: getattr(prepared.manifest, name) for name in known}
