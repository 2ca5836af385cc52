"""How often the pictures most like a query show the same class: Top-k, mAP@k, and what chance would give.

Queries of one patient look alike, so intervals come from resampling patients, not pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import hypergeom

from raymed.errors import UserError
from raymed.evaluation.estimate import Estimate, bootstrapped, flatten
from raymed.evaluation.intervals import wilson
from raymed.evaluation.resampling import resamples
from raymed.retrieval.features import Features
from raymed.retrieval.gallery import Gallery, Neighbours


@dataclass(frozen=True)
class ClassRetrieval:
    """The queries of one class.

    Attributes:
        name: class name.
        queries: pictures; of so many `patients`.
        top: Top-k accuracy by k.
    """

    name: str
    queries: int
    patients: int
    top: dict[int, float]


@dataclass(frozen=True)
class Retrieval:
    """Assessment of a search; plain values only, and no patient is named.

    Attributes:
        layer: whose features.
        queries: pictures asked about; of so many `patients`. Where no patient is known, a picture counts as one.
        gallery: pictures searched.
        unlabelled: queries without a label, which are not judged.
        unanswerable: queries whose class the gallery has no picture of that may be found; they count as wrong.
        hits: queries with the same class among the first k, by k.
        top: their share (Top-k accuracy), by k.
        mean_average_precision: mAP@k by k.
        chance: Top-k that neighbours drawn at random would have, by k.
        classes: one entry per class of the queries, by name.
    """

    layer: int
    queries: int
    patients: int
    gallery: int
    unlabelled: int
    unanswerable: int
    hits: dict[int, int]
    top: dict[int, Estimate]
    mean_average_precision: dict[int, Estimate]
    chance: dict[int, float]
    classes: tuple[ClassRetrieval, ...]

    def flat(self) -> dict[str, float]:
        """Every figure under one name each, for a metric store: ``top_1``, ``top_1_low``, ``map_5``, ``top_1/viral`` ..."""
        named = {f"top_{k}": each for k, each in self.top.items()}
        flat = flatten(named | {f"map_{k}": each for k, each in self.mean_average_precision.items()})
        flat |= {f"chance_top_{k}": value for k, value in self.chance.items()}
        return flat | {f"top_{k}/{each.name}": value for each in self.classes for k, value in each.top.items()}


def right(neighbours: Neighbours, queries: Features, gallery: Features) -> np.ndarray:
    """Whether each neighbour shows its query's class, bool [queries, k]; a neighbour that there is not shows none."""
    found = gallery.labels[neighbours.rows]
    return (found == queries.labels[:, None]) & (neighbours.rows >= 0) & (queries.labels[:, None] != None)  # noqa: E711


def average_precision(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """AP@k of each query, [queries]: the sum over the first k places of precision there times hit, divided by min(k, R).

    Source: Manning et al. 2008, Introduction to Information Retrieval, 8.4, cut at k.

    Args:
        hits: bool [queries, k], the nearest first.
        relevant: R, pictures of the query's class that could have been found, [queries]; where there are none, AP is 0.
    """
    k = hits.shape[1]
    precision = hits.cumsum(axis=1) / np.arange(1, k + 1)
    values: np.ndarray = (precision * hits).sum(axis=1) / np.clip(relevant, 1, k)
    return values


def judge(
    gallery: Gallery, queries: Features, neighbours: Neighbours, ks: Sequence[int], bootstrap: int = 1000, seed: int = 0
) -> Retrieval:
    """Judge the neighbours of queries.

    Args:
        neighbours: at least max(ks) of each query.
        bootstrap: resamples of patients behind each interval.

    Raises:
        UserError: no query has a label, or all of the gallery is of one class.
    """
    labelled = np.array([label is not None for label in queries.labels])
    if not labelled.any():
        raise UserError(f"no query in {queries.name} has a label: there is nothing to judge")
    classes = {label for label in gallery.features.labels if label is not None}
    if len(classes) < 2:
        named = ", ".join(classes) or "none"
        raise UserError(
            f"the gallery {gallery.features.name} has one class or none ({named}): every answer would be the same"
        )
    hits = right(neighbours, queries, gallery.features)[labelled]
    relevant, candidates = (each[labelled] for each in findable(gallery, queries))
    labels, patients = queries.labels[labelled], queries.owners[labelled]
    weights = PatientResamples(labels, patients, bootstrap, seed)
    tops = {k: hits[:, :k].any(axis=1) for k in ks}
    return Retrieval(
        layer=gallery.layer,
        queries=len(hits),
        patients=len(set(patients)),
        gallery=len(gallery.features),
        unlabelled=int((~labelled).sum()),
        unanswerable=int((relevant == 0).sum()),
        hits={k: int(top.sum()) for k, top in tops.items()},
        top={k: weights.mean(top) for k, top in tops.items()},
        mean_average_precision={k: weights.mean(average_precision(hits[:, :k], relevant)) for k in ks},
        chance={k: float(hypergeom.sf(0, candidates, relevant, np.minimum(k, candidates)).mean()) for k in ks},
        classes=tuple(
            ClassRetrieval(
                name=str(name),
                queries=int((labels == name).sum()),
                patients=len(set(patients[labels == name])),
                top={k: float(top[labels == name].mean()) for k, top in tops.items()},
            )
            for name in sorted(set(labels))
        ),
    )


def findable(gallery: Gallery, queries: Features) -> tuple[np.ndarray, np.ndarray]:
    """For each query, pictures of its class, and all pictures, that may be its neighbours; int64 [queries]."""
    features, excluding = gallery.features, gallery.settings.exclude != "none"
    of_class = Counter(features.labels.tolist())
    owners, asking = gallery.owners(features), gallery.owners(queries)
    own = Counter(owners.tolist() if excluding else [])
    own_of_class = Counter(zip(owners.tolist(), features.labels.tolist(), strict=True) if excluding else [])
    pairs = list(zip(asking.tolist(), queries.labels.tolist(), strict=True))
    relevant = np.array([of_class[label] - own_of_class[owner, label] for owner, label in pairs], dtype=np.int64)
    return relevant, np.array([len(features) - own[owner] for owner, _ in pairs], dtype=np.int64)


class PatientResamples:
    """How often each patient is drawn, within classes, in each resample."""

    def __init__(self, labels: np.ndarray, patients: np.ndarray, count: int, seed: int) -> None:
        # a patient with pictures of two classes is drawn as two
        pairs = [f"{label}\0{patient}" for label, patient in zip(labels, patients, strict=True)]
        _, first, self._owner = np.unique(pairs, return_index=True, return_inverse=True)
        self._sizes = np.bincount(self._owner)
        self._classes = np.unique(labels[first].astype(str), return_inverse=True)[1]  # of each patient
        self._draw = partial(resamples, labels[first].astype(str), count, seed)  # again each time: together they are large

    def mean(self, values: np.ndarray) -> Estimate:
        """The mean over pictures, with its 95 % interval.

        Where all pictures have the same value, so has every resample, and shows nothing of how sure it is: the interval is
        then that of a share of as many patients (Wilson 1927).
        """
        if len(self._sizes) > 1 and (values == values[0]).all():
            return wilson(float(values[0]), len(self._sizes))
        sums = np.bincount(self._owner, weights=values)
        means = np.concatenate([drawn @ sums / (drawn @ self._sizes) for drawn in self._draw()])
        return bootstrapped(float(values.mean()), means, self._classes)
