"""Hounsfield units: what is padding, and whether values can be Hounsfield units at all.

A header may say anything. A scan of a body holds air and tissue, and nothing far above metal; values that do not are of
another scale, and a window would make a wrong picture of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from raymed.data.image import ImageError

AIR = -1000.0
PADDING_BELOW = -1500.0  # air with its noise ends above; scanners pad with -2000, -2048, -3024, -8192
PADDING = -10_000.0
TISSUE_ABOVE = -200.0  # every scan of a chest has voxels far below, and voxels above
TISSUE_BELOW = 3072.0  # where the scale without implants ends
MOST = 32767.0  # the extended scale of implants ends at 30710
LEAST_SHARE = 0.001  # of air, and of tissue: a scan interpolated from another scale has a few voxels anywhere
MOST_DENSE = 0.1  # share of a scan above TISSUE_BELOW


@dataclass(frozen=True, slots=True)
class Values:
    """Of a slice, padding aside.

    Attributes:
        highest: value.
        air: share below TISSUE_ABOVE.
        dense: share from TISSUE_BELOW up.
    """

    highest: float
    air: float
    dense: float


def without_padding(hu: np.ndarray) -> tuple[np.ndarray, Values]:
    """A slice with padding (below PADDING_BELOW) replaced by air, which tells no scanner from another, and its values.

    Args:
        hu: float32, of any shape.

    Raises:
        ImageError: NaN or infinite values, or nothing but padding.
    """
    lowest, highest = float(hu.min()), float(hu.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ImageError("NaN or infinite values")
    measured, below = hu.size, int(np.count_nonzero(hu < TISSUE_ABOVE))
    if lowest < PADDING_BELOW:
        padding = hu < PADDING_BELOW
        padded = int(np.count_nonzero(padding))
        measured, below = measured - padded, below - padded
        hu = np.where(padding, np.float32(AIR), hu)
    if not measured:
        raise ImageError("nothing but padding")
    dense = np.count_nonzero(hu >= TISSUE_BELOW) if highest >= TISSUE_BELOW else 0
    return hu, Values(highest, below / measured, dense / measured)


def require_hounsfield(slices: Collection[Values]) -> None:
    """Check the slices of a series, or of a volume, together.

    Raises:
        ImageError: their values are not in Hounsfield units.
    """
    if not slices:
        return
    highest = max(each.highest for each in slices)
    air, dense = (float(np.mean([getattr(each, name) for each in slices])) for name in ("air", "dense"))
    if highest > MOST:
        reason = f"values up to {highest:.6g}"
    elif air < LEAST_SHARE:
        reason = f"hardly a value below {TISSUE_ABOVE:.0f}, where air would be"
    elif air > 1 - LEAST_SHARE:
        reason = f"hardly a value above {TISSUE_ABOVE:.0f}, where tissue would be"
    elif dense > MOST_DENSE:
        reason = f"{dense:.0%} of the values are {TISSUE_BELOW:.0f} or more, which only metal has"
    else:
        return
    raise ImageError(f"{reason}: the values are not in Hounsfield units")
