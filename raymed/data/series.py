"""Series of slices: how many patients have, and whether slices that follow one another look alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from raymed.data.prepared import Prepared
from raymed.data.sources.listing import some
from raymed.language import say

FEWEST = 8  # slices of a series whose order is looked at
RANGES = 8  # of a histogram, at most
FAR = 2.0  # times as many as the median, or as few, make a number of slices unusual
ALIKE = 0.9  # of the distance of slices half a series apart: neighbours that differ as much are none


def report(prepared: Prepared) -> list[str]:
    """Lines for a person; none where patients have one slice each."""
    columns = prepared.index.select(["patient", "study", "position", "hash"]).to_pydict()
    patients, counts = np.unique(np.array(columns["patient"], dtype=object), return_counts=True)
    median = float(np.median(counts))
    if counts.max() == 1:
        return []
    fewest, most = counts.min(), counts.max()
    lines = [say("slices a patient: median {median:.0f} ({fewest} to {most})", median=median, fewest=fewest, most=most)]
    lines.append(say("patients by number of slices: {histogram}", histogram=", ".join(_histogram(counts))))
    unusual = (counts > FAR * median) | (counts < median / FAR)
    if unusual.any():
        named = [f"{patient} ({count})" for patient, count in zip(patients[unusual], counts[unusual], strict=True)]
        lines.append(say("unusual numbers of slices: {named}", named=some(named, 5)))
    series = list(_series(columns["study"], columns["position"], columns["hash"]))
    jumbled = [name for name, codes in series if not follows(codes)]
    if len(jumbled) > len(series) / 2:
        lines.append(
            say(
                "warning: in {count} of {all} series, such as {first}, slices that follow one another "
                "look no more alike than others: the order of the file names may not be that of the body, which "
                "choosing slices evenly relies on. Name files by their place, or give a column `position`",
                count=len(jumbled),
                all=len(series),
                first=jumbled[0],
            )
        )
    return lines


def _histogram(counts: np.ndarray) -> Iterator[str]:
    """Ranges of numbers of slices, as wide as each other, with how many patients are in each that has any."""
    width = -(-(int(counts.max()) - int(counts.min()) + 1) // RANGES)
    for low in range(int(counts.min()), int(counts.max()) + 1, width):
        inside = int(((low <= counts) & (counts < low + width)).sum())
        if inside:
            yield f"{low}-{low + width - 1}: {inside}" if width > 1 else f"{low}: {inside}"


def follows(codes: np.ndarray) -> bool:
    """Whether slices next to each other look more alike than those half a series apart.

    Args:
        codes: perceptual hashes in the order of the slices, uint8 [slices, bytes].
    """
    half = len(codes) // 2
    return float(_distances(codes, 1).mean()) < ALIKE * float(_distances(codes, half).mean())


def _distances(codes: np.ndarray, apart: int) -> np.ndarray:
    """Bits in which slices differ that are so far apart, [pairs]."""
    return np.bitwise_count(codes[apart:] ^ codes[:-apart]).sum(axis=1)


def _series(studies: list[str], positions: list[int], hashes: list[bytes | None]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and hashes, in order, of every series of enough slices with structure."""
    names = np.array(studies, dtype=object)
    order = np.lexsort((np.array(positions), names.astype(str)))
    starts = np.flatnonzero(np.r_[True, names[order][1:] != names[order][:-1]])
    for rows in np.split(order, starts[1:]):
        known = [code for row in rows.tolist() if (code := hashes[row]) is not None]
        if len(known) >= FEWEST:
            yield str(names[rows[0]]), np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
