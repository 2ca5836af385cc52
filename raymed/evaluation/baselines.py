"""What a model has to beat: always the same answer, and the answer that a patient's source gives away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.patients import Patients
from raymed.evaluation.scores import auc

FEW = 10  # sources with fewer patients count as one: each would give its few patients away; classes with fewer are left out
SHUFFLES = 200


@dataclass(frozen=True)
class SourceBaseline:
    """What is left to the model where patients come from several sources.

    Attributes:
        macro_auc: of the source alone: a patient's score is how frequent the class is among the patients of its source.
        by_chance: the macro AUC that sources drawn by lot stay below 95 times in 100; it is above 1/2, because the same
            patients give the frequencies.
        class_name: the class that the source gives away most, and the source's `class_auc` for it.
        classes: how many classes the means are over: those of at least ten patients, or all where these are fewer than two;
            likewise `within_classes`, of those that have pairs within a source.
        within: the model's macro AUC over pairs of patients of one source, which the source cannot help with; None where no
            source has two classes.
    """

    macro_auc: float
    by_chance: float
    class_name: str
    class_auc: float
    classes: int
    within: Estimate | None
    within_classes: int

    @property
    def tells(self) -> bool:
        """Whether the source says more about the class than chance explains."""
        return self.macro_auc > self.by_chance


@dataclass(frozen=True)
class Baselines:
    """Answers that need no picture.

    Attributes:
        majority: the most frequent class of these patients, and the `accuracy` of always giving it.
        loss: of giving each patient the classes' frequencies among these patients, the best of all constant answers.
        source: None where all patients have one source or one class, or where slices voted.
    """

    majority: str
    accuracy: float
    loss: float
    source: SourceBaseline | None

    @classmethod
    def of(cls, patients: Patients, names: Sequence[str], confusion: np.ndarray, seed: int) -> Baselines:
        """Args: confusion: patients by class and decision, [classes, classes]."""
        shares = confusion.sum(axis=1) / len(patients.labels)
        known = shares[shares > 0]
        return cls(
            majority=names[int(shares.argmax())],
            accuracy=float(shares.max()),
            loss=float(-(known * np.log(known)).sum()),
            source=None if patients.voted else _source_baseline(patients, names, confusion, seed),
        )


def _source_baseline(patients: Patients, names: Sequence[str], confusion: np.ndarray, seed: int) -> SourceBaseline | None:
    sources, sizes = np.unique(patients.sources.astype(str), return_inverse=True, return_counts=True)[1:]
    common = np.where(sizes[sources] < FEW, -1, sources)
    having = np.bincount(patients.labels, minlength=len(names))
    classes = [c for c in range(len(names)) if 0 < having[c] < len(patients.labels)]
    frequent = [c for c in classes if having[c] >= FEW]
    classes = frequent if len(frequent) > 1 else classes
    if len(np.unique(common)) < 2 or not classes:
        return None
    areas = _source_areas(patients.labels, common, classes)
    generator = np.random.default_rng(seed)
    shuffled = [_source_areas(patients.labels, generator.permutation(common), classes).mean() for _ in range(SHUFFLES)]
    within = [_area_within(patients, c, common) for c in classes]
    kept = [c for c, area in zip(classes, within, strict=True) if area is not None]
    inside = [area for area in within if area is not None]
    return SourceBaseline(
        macro_auc=float(areas.mean()),
        by_chance=float(np.quantile(shuffled, 0.95)),
        class_name=names[classes[int(areas.argmax())]],
        class_auc=float(areas.max()),
        classes=len(classes),
        within=intervals.macro_auc(inside, confusion[np.ix_(kept, kept)]) if inside else None,
        within_classes=len(kept),
    )


def _source_areas(labels: np.ndarray, sources: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """The area of each class, where the score is the class's frequency in the patient's source."""
    _, owner, sizes = np.unique(sources, return_inverse=True, return_counts=True)
    having = [labels == c for c in classes]
    return np.array([auc(one, (np.bincount(owner, weights=one) / sizes)[owner]) for one in having])


def _area_within(patients: Patients, label: int, sources: np.ndarray) -> Estimate | None:
    """The model's area over pairs of one source: each source's weighs as much as it has pairs."""
    areas, pairs = [], []
    for source in np.unique(sources):
        rows = sources == source
        positive = patients.labels[rows] == label
        have, have_not = int(positive.sum()), int((~positive).sum())
        if have and have_not:
            areas.append(intervals.auc(auc(positive, patients.probabilities[rows, label]), have, have_not))
            pairs.append(have * have_not)
    return intervals.weighted_mean(areas, np.array(pairs) / sum(pairs)) if areas else None
