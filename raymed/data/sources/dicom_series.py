"""The slices of a series in their order: from the feet to the head, one at each height.

Instance numbers may run either way, and one series may hold several phases, copies, or a slice again and again, as while
the arrival of contrast medium is watched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raymed.data.image import ImageError
from raymed.data.sources.dicom_header import PHASES, Header, open_file
from raymed.data.sources.listing import natural_key

SAME_HEIGHT = 0.01  # mm
GAP = 1.5  # times the usual distance
WHOLE = 0.5  # of a series' extent that each of its phases covers


@dataclass
class Ordered:
    """One series.

    Reasons name no file: they are kept where names of patients may not be.

    Attributes:
        phases: its slices, in order; several lists where each covers the same anatomy.
        refused: path -> reason.
        left_out: path -> reason, of files with which nothing is wrong.
        gaps: path of the slice before -> in words.
    """

    phases: list[list[Header]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)


def order(root: Path, members: Sequence[Header]) -> Ordered:
    """Put the files of one series in order."""
    result = Ordered()
    members = sorted(members, key=lambda header: (header.height or 0.0, header.instance, natural_key(header.path)))
    members = _once(members, result)
    if any(header.height is None for header in members):  # X-rays
        result.phases = [members]
        return result
    alike: dict[tuple[float | None, tuple[str, ...]], list[Header]] = defaultdict(list)
    for header in members:
        alike[header.height, header.phases].append(header)
    members = [header for group in alike.values() for header in _without_copies(root, group, result)]
    if len(members) > 1 and _extent(members) < SAME_HEIGHT:
        members = _without_copies(root, members, result)
        if len(members) > 1:
            reason = f"one of {len(members)} images at one height, as while contrast medium is awaited: no volume"
            result.left_out |= {header.path: reason for header in members}
            return result
    for phase in _phases(members):
        if slices := _one_at_each_height(root, phase, result):
            result.phases.append(slices)
            result.gaps |= _gaps(slices)
    return result


def _once(members: list[Header], result: Ordered) -> list[Header]:
    """Files with a SOPInstanceUID of their own."""
    first: dict[str, Header] = {}
    kept = []
    for header in members:
        same = first.setdefault(header.instance_uid, header) if header.instance_uid else header
        if same is header:
            kept.append(header)
        elif same.height is not None and header.height is not None and abs(same.height - header.height) >= SAME_HEIGHT:
            result.refused[header.path] = "has the SOPInstanceUID of another file, and lies elsewhere: one is wrong"
        else:
            result.left_out[header.path] = "the same image as another file (SOPInstanceUID)"
    return kept


def _phases(members: list[Header]) -> list[list[Header]]:
    """The members, divided by the first of `PHASES` that leaves one at each height; undivided where none does."""
    if not _repeated(members):
        return [members]
    for place in range(len(PHASES)):
        groups: dict[str, list[Header]] = defaultdict(list)
        for header in members:
            groups[header.phases[place]].append(header)
        whole = [len(group) > 1 and _extent(group) >= WHOLE * _extent(members) for group in groups.values()]
        if len(groups) > 1 and all(whole) and not any(_repeated(group) for group in groups.values()):
            return [groups[value] for value in sorted(groups, key=natural_key)]
    return [members]


def _one_at_each_height(root: Path, members: list[Header], result: Ordered) -> list[Header]:
    kept = []
    for height in _by_height(members):
        several = _without_copies(root, height, result)
        if len(several) > 1:
            reason = (
                f"one of {len(several)} images at one height of the series, and nothing tells phases apart: name the "
                "files of one phase in a CSV"
            )
            result.refused |= {header.path: reason for header in several}
        else:
            kept += several
    return kept


def _without_copies(root: Path, members: list[Header], result: Ordered) -> list[Header]:
    """Members whose pixels no earlier one has. Files are opened only where several lie at one height."""
    if len(members) < 2:
        return members
    first: dict[bytes, Header] = {}
    kept = []
    for header in members:
        try:
            stored = open_file(root / header.path, pixels=True).get("PixelData")
        except ImageError:
            stored = None  # whoever reads the slice says why
        same = first.setdefault(stored, header) if stored else header
        if same is header:
            kept.append(header)
        else:
            result.left_out[header.path] = "a copy: another file has the same pixels at the same height"
    return kept


def _by_height(members: list[Header]) -> list[list[Header]]:
    groups: list[list[Header]] = []
    for header in members:
        if groups and abs((groups[-1][-1].height or 0.0) - (header.height or 0.0)) < SAME_HEIGHT:
            groups[-1].append(header)
        else:
            groups.append([header])
    return groups


def _repeated(members: list[Header]) -> bool:
    return len(_by_height(members)) < len(members)


def _extent(members: list[Header]) -> float:
    heights = [header.height or 0.0 for header in members]
    return max(heights) - min(heights)


def _gaps(slices: list[Header]) -> dict[str, str]:
    if len(slices) < 3:
        return {}
    distances = np.diff([header.height or 0.0 for header in slices])
    usual = float(np.median(distances))
    wide = [place for place, distance in enumerate(distances) if distance > GAP * usual]
    return {
        slices[place].path: (
            f"{distances[place]:.1f} mm between {slices[place].path} and {slices[place + 1].path}, usually {usual:.1f} mm"
        )
        for place in wide
    }
