"""On which side of a chest picture the heart's shadow lies, by a rule of thumb: mirrored pictures stand out in numbers."""

from __future__ import annotations

import numpy as np

ROWS = 0.55, 0.75  # of the height, from the top: the heart in an X-ray; in CT spine and aorta
HALF = 0.22  # of the width, to each side of the middle


def lean(picture: np.ndarray) -> float:
    """How much brighter the middle of a picture, uint8 [h, w, channels], is right of its middle than left: -1 to 1.

    A chest shown the usual way, the patient's left on the right, mostly gives more than 0. Of one picture it says little
    (effusions, masses and turned patients have it otherwise); how many of a group of patients give more than 0 says more.
    """
    height, width = picture.shape[:2]
    band = picture[int(ROWS[0] * height) : int(ROWS[1] * height)].astype(np.float32).mean(axis=2)
    reach = max(1, int(HALF * width))
    left, right = band[:, width // 2 - reach : width // 2].mean(), band[:, width - width // 2 :][:, :reach].mean()
    return float((right - left) / max(right + left, 1.0))
