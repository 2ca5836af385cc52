"""Bootstrap weights: how often each row is drawn in each resample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_CELLS = 4_000_000  # weights held at once: 32 MB


def resamples(labels: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights [some, rows], `count` in all: each class is drawn from itself, with replacement, to its own size.

    Source: Efron & Tibshirani 1993, the bootstrap within strata.
    """
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // len(labels))
    for start in range(0, count, step):
        weights = np.empty((min(step, count - start), len(labels)))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            weights[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=len(weights))
        yield weights
