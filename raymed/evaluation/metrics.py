"""How good a model is, per patient, and how sure that is.

Classes that no patient has are left out of macro figures; a figure that cannot be formed is absent, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, roc_curve

from raymed.errors import UserError
from raymed.evaluation.estimate import Estimate, bootstrapped, flatten, share
from raymed.evaluation.patients import UNKNOWN, Patients, softmax, to_patients
from raymed.evaluation.resampling import BINS, WeightedFigures, bins_of, losses, resamples, weigh

RARE = 5  # a class with fewer patients is marked, and macro figures are also given without it


@dataclass(frozen=True)
class ClassFigures:
    """One class against all others. None: nobody has the class, or (precision) nobody was given it.

    Attributes:
        name: class name.
        support: patients who have the class.
        decided: patients who were given the class.
        rare: one to four patients have it, so that no figure of it means much.
    """

    name: str
    support: int
    decided: int
    rare: bool
    sensitivity: Estimate | None
    specificity: Estimate | None
    precision: Estimate | None
    f1: Estimate | None
    auc: Estimate | None


@dataclass(frozen=True)
class ReliabilityBin:
    """Patients whose decision had a confidence in (low, high]: mean confidence against the share that was right."""

    low: float
    high: float
    patients: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class RocCurve:
    """One class against all others: true against false positive rate over all thresholds."""

    name: str
    false_positive: tuple[float, ...]
    true_positive: tuple[float, ...]


@dataclass(frozen=True)
class SourceFigures:
    """The patients of one source."""

    name: str
    patients: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """Patient-level judgement of a model; plain values only (`dataclasses.asdict` makes it JSON), and no patient is named.

    Attributes:
        patients: number of patients.
        metrics: loss (negative log likelihood), accuracy, balanced_accuracy, macro_f1, macro_auc, ece; where a class is
            rare, also macro figures over the other classes, with the ending ``_without_rare``.
        classes: one entry per class, in the order of the label table.
        confusion: patients by class (row) and decision (column).
        reliability: the bins that hold a patient.
        roc: one curve per class that some but not all patients have.
        sources: the same metrics per source, when there are several.
    """

    patients: int
    metrics: dict[str, Estimate]
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...]
    roc: tuple[RocCurve, ...]
    sources: tuple[SourceFigures, ...]

    def flat(self) -> dict[str, float]:
        """Every figure under one name each, for a metric store: ``loss``, ``loss_low``, ``sensitivity_viral_high`` ..."""
        named: dict[str, Estimate | None] = dict(self.metrics)
        for figures in self.classes:
            for kind in ("sensitivity", "specificity", "precision", "f1", "auc"):
                named[f"{kind}_{figures.name}"] = getattr(figures, kind)
        return flatten(named)


def judge_patients(logits: np.ndarray, columns: dict[str, np.ndarray], class_names: Sequence[str]) -> dict[str, float]:
    """Validation metrics of one epoch.

    Args:
        logits: [rows, classes], one row per slice.
        columns: index columns of the same rows: ``patient``, ``label`` (class index), ``source``.
        class_names: names for the per-class keys.

    Returns:
        ``val_loss`` (negative log likelihood of the patients' mean probabilities, each at least 1e-7), ``accuracy``,
        ``balanced_accuracy``, ``macro_f1``, ``macro_auc`` (one against rest), ``ece`` and, per class,
        ``sensitivity_<class>`` and ``specificity_<class>``, all per patient; with the prefix ``slice_`` the overall ones per
        slice (``slice_loss`` ...). A figure that cannot be formed is absent.

    Raises:
        RunError: a logit is NaN or infinite.
        UserError: a row has no label, or a patient has two.
    """
    labels, probabilities = np.asarray(columns["label"], dtype=np.int64), softmax(logits)
    patients = to_patients(probabilities, columns["patient"], labels, columns["source"])
    _require_labels(patients)
    judged = overall(patients.labels, patients.probabilities)
    judged = {"val_loss": judged.pop("loss")} | judged
    for (hits, misses, false_alarms, rejections), name in zip(_outcomes(_confusion(patients)), class_names, strict=True):
        if hits + misses:
            judged[f"sensitivity_{name}"] = hits / (hits + misses)
        if false_alarms + rejections:
            judged[f"specificity_{name}"] = rejections / (false_alarms + rejections)
    return judged | {f"slice_{name}": value for name, value in overall(labels, probabilities).items()}


def evaluate(patients: Patients, class_names: Sequence[str], bootstrap: int = 1000, seed: int = 0) -> Evaluation:
    """Judge a model on patients, with 95 % intervals.

    Shares of patients (accuracy, sensitivity, specificity, precision) have Wilson score intervals (Wilson 1927), which keep
    their width when everybody is right; all other figures have percentile bootstrap intervals over patients, resampled
    within classes (Efron & Tibshirani 1993), and none where a class has one patient only.

    Raises:
        UserError: a patient has no label, or there is no patient.
    """
    _require_labels(patients)
    confusion = _confusion(patients)
    rare = _rare(patients.labels, len(class_names))
    metrics, per_class = _estimates(patients.labels, patients.probabilities, rare, bootstrap, seed)
    sources = sorted(set(map(str, patients.sources)))
    return Evaluation(
        patients=len(patients.labels),
        metrics=metrics,
        classes=tuple(
            ClassFigures(
                name=name,
                support=hits + misses,
                decided=hits + false_alarms,
                rare=bool(rare[c]),
                sensitivity=share(hits, hits + misses),
                specificity=share(rejections, rejections + false_alarms),
                precision=share(hits, hits + false_alarms),
                f1=per_class["f1"][c],
                auc=per_class["auc"][c],
            )
            for c, (name, (hits, misses, false_alarms, rejections)) in enumerate(
                zip(class_names, _outcomes(confusion), strict=True)
            )
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        reliability=_reliability(patients),
        roc=_roc(patients, class_names),
        sources=tuple(
            _source(source, patients, len(class_names), bootstrap, seed) for source in (sources if len(sources) > 1 else ())
        ),
    )


def difference_interval(a: Patients, b: Patients, bootstrap: int = 1000, seed: int = 0) -> Estimate:
    """Mean over patients of (loss of `a` - loss of `b`), with its paired bootstrap interval.

    An interval that holds zero says that these patients cannot tell the two models apart.

    Raises:
        UserError: `a` and `b` are not about the same patients with the same labels, or a patient has no label.
    """
    _require_labels(a)
    if not (np.array_equal(a.ids, b.ids) and np.array_equal(a.labels, b.labels)):
        raise UserError(
            "Two models can be compared only on the same patients with the same labels: predict both on one split."
        )
    difference = losses(a.labels, a.probabilities) - losses(b.labels, b.probabilities)
    drawn = np.concatenate([weights @ difference for weights in resamples(a.labels, bootstrap, seed)]) / len(difference)
    return bootstrapped(float(difference.mean()), drawn, a.labels)


def _require_labels(patients: Patients) -> None:
    if not len(patients.ids):
        raise UserError("There is no patient to judge: choose a split that has patients.")
    missing = patients.ids[patients.labels == UNKNOWN]
    if len(missing):
        named = ", ".join(str(patient) for patient in missing[:10])
        raise UserError(
            f"{len(missing)} patients have no label and cannot be judged: {named}. Judge labelled patients only."
        )


def _rare(labels: np.ndarray, classes: int) -> np.ndarray:
    counts = np.bincount(labels, minlength=classes)
    return (counts > 0) & (counts < RARE)


def overall(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The figures over all patients, or over all slices, without intervals: ``loss``, ``accuracy`` and so on.

    Args:
        labels: class indices, int [rows].
        probabilities: [rows, classes].
    """
    figures = weigh(labels, probabilities, np.ones((1, len(labels))))
    return {name: float(value[0]) for name, value in figures.named(np.zeros(probabilities.shape[1], bool)).items()}


def _estimates(
    labels: np.ndarray, probabilities: np.ndarray, rare: np.ndarray, bootstrap: int, seed: int
) -> tuple[dict[str, Estimate], dict[str, list[Estimate | None]]]:
    """Overall figures by name; f1 and auc by class."""
    point = weigh(labels, probabilities, np.ones((1, len(labels))))
    drawn = [weigh(labels, probabilities, weights) for weights in resamples(labels, bootstrap, seed)]
    parts = [figures.named(rare) for figures in drawn]
    metrics = {
        name: bootstrapped(float(value[0]), np.concatenate([part[name] for part in parts]), labels)
        for name, value in point.named(rare).items()
    }
    right = int((probabilities.argmax(axis=1) == labels).sum())
    accuracy = share(right, len(labels))
    assert accuracy is not None  # there is at least one patient
    metrics["accuracy"] = accuracy
    return metrics, {kind: _by_class(kind, point, drawn, labels) for kind in ("f1", "auc")}


def _by_class(kind: str, point: WeightedFigures, drawn: list[WeightedFigures], labels: np.ndarray) -> list[Estimate | None]:
    """A figure of each class: of a single patient's class there is no other patient to draw instead."""
    values, resampled = getattr(point, kind)[0], np.concatenate([getattr(figures, kind) for figures in drawn])
    return [
        bootstrapped(float(value), column, labels if (labels == label).sum() > 1 else np.array([label]))
        if np.isfinite(value)
        else None
        for label, (value, column) in enumerate(zip(values, resampled.T, strict=True))
    ]


def _confusion(patients: Patients) -> np.ndarray:
    classes = patients.probabilities.shape[1]
    counts: np.ndarray = confusion_matrix(patients.labels, patients.decisions, labels=range(classes))
    return counts


def _outcomes(confusion: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Per class against all others: hits, misses, false alarms, correct rejections."""
    hits = confusion.diagonal()
    misses, false_alarms = confusion.sum(axis=1) - hits, confusion.sum(axis=0) - hits
    rejections = confusion.sum() - hits - misses - false_alarms
    return [tuple(map(int, counts)) for counts in zip(hits, misses, false_alarms, rejections, strict=True)]  # type: ignore[misc]


def _source(name: str, patients: Patients, classes: int, bootstrap: int, seed: int) -> SourceFigures:
    rows = patients.sources == name
    labels, probabilities = patients.labels[rows], patients.probabilities[rows]
    metrics, _ = _estimates(labels, probabilities, np.zeros(classes, bool), bootstrap, seed)
    return SourceFigures(name, len(labels), metrics)


def _reliability(patients: Patients) -> tuple[ReliabilityBin, ...]:
    confidence, right = patients.probabilities.max(axis=1), patients.decisions == patients.labels
    bins = bins_of(confidence)
    return tuple(
        ReliabilityBin(
            low=number / BINS,
            high=(number + 1) / BINS,
            patients=int((bins == number).sum()),
            confidence=float(confidence[bins == number].mean()),
            accuracy=float(right[bins == number].mean()),
        )
        for number in np.unique(bins).tolist()
    )


def _roc(patients: Patients, class_names: Sequence[str]) -> tuple[RocCurve, ...]:
    curves = []
    for c, name in enumerate(class_names):
        having = patients.labels == c
        if having.any() and not having.all():
            false_positive, true_positive, _ = roc_curve(having, patients.probabilities[:, c])
            curves.append(RocCurve(name, tuple(false_positive.tolist()), tuple(true_positive.tolist())))
    return tuple(curves)
