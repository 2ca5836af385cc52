"""How good a model is, per patient, and how sure that is.

Classes that no patient has are left out of macro figures; a figure that cannot be formed is absent, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_curve

from raymed.errors import UserError
from raymed.evaluation import intervals
from raymed.evaluation.baselines import Baselines
from raymed.evaluation.estimate import Estimate, flatten
from raymed.evaluation.intervals import share
from raymed.evaluation.patients import UNKNOWN, Patients, softmax, to_patients
from raymed.evaluation.reliability import Calibration
from raymed.evaluation.scores import LARGEST_LOSS, Scores, losses, overall

RARE = 10  # a class or source with fewer patients is marked; macro figures are also given without such classes


@dataclass(frozen=True)
class ClassFigures:
    """One class against all others. None: nobody has the class, (precision) nobody was given it, or (AUC) slices voted.

    Attributes:
        name: class name.
        support: patients who have the class.
        decided: patients who were given the class.
        rare: one to nine patients have it: another patient more would change its figures.
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
class RocCurve:
    """One class against all others: true against false positive rate over all thresholds."""

    name: str
    false_positive: tuple[float, ...]
    true_positive: tuple[float, ...]


@dataclass(frozen=True)
class SourceFigures:
    """The patients of one source.

    Attributes:
        rare: fewer than ten.
        majority: their most frequent class, and how often always giving it is right.
        metrics: as of all patients.
    """

    name: str
    patients: int
    rare: bool
    majority: str
    majority_accuracy: float
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """Patient-level assessment of a model; plain values only (`dataclasses.asdict` makes it JSON), and no patient is named.

    Attributes:
        patients: number of patients.
        unit: what a person must call them: patient, or image where nobody knows whose the pictures are.
        metrics: loss (negative log likelihood), accuracy, balanced_accuracy, macro_f1, macro_auc; where a class is
            rare, also macro figures over the other classes, with the ending ``_without_rare``. Where slices voted, neither
            loss nor macro_auc: shares of votes are no probabilities.
        classes: one entry per class, in the order of the label table.
        confusion: patients by class (row) and decision (column).
        calibration: whether probabilities mean what they say; None where slices voted.
        roc: one curve per class that some but not all patients have.
        sources: the same metrics per source, when there are several.
        baselines: what needs no picture, to compare with.
    """

    patients: int
    unit: str
    metrics: dict[str, Estimate]
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: Calibration | None
    roc: tuple[RocCurve, ...]
    sources: tuple[SourceFigures, ...]
    baselines: Baselines

    @property
    def units(self) -> str:
        """What a person must call several of them."""
        return f"{self.unit}s"

    @property
    def beats_majority(self) -> bool:
        """Whether the decisions are surely right more often than always giving the most frequent class."""
        low = self.metrics["accuracy"].low
        return low is not None and low > self.baselines.accuracy

    @property
    def without_patients(self) -> tuple[str, ...]:
        """Classes that no patient has: means over classes leave them out."""
        return tuple(figures.name for figures in self.classes if not figures.support)

    def flat(self) -> dict[str, float]:
        """Every figure under one name each, for a metric store: ``loss``, ``loss_low``, ``sensitivity_viral_high`` ..."""
        named: dict[str, Estimate | None] = dict(self.metrics)
        for figures in self.classes:
            for kind in ("sensitivity", "specificity", "precision", "f1", "auc"):
                named[f"{kind}_{figures.name}"] = getattr(figures, kind)
        flat = flatten(named)
        if (calibration := self.calibration) is not None:
            flat |= {
                "ece": calibration.error,
                "ece_perfect": calibration.perfect,
                "ece_perfect_high": calibration.perfect_high,
            }
            flat |= flatten({"calibration_slope": calibration.slope, "calibration_gap": calibration.gap})
        baselines = self.baselines
        flat |= {"majority_accuracy": baselines.accuracy, "prior_loss": baselines.loss}
        if baselines.source is not None:
            flat["source_macro_auc"] = baselines.source.macro_auc
            flat |= flatten({"within_source_macro_auc": baselines.source.within})
        return flat


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
        slice (``slice_loss`` ...) and the sensitivities. A figure that cannot be formed is absent.

    Raises:
        RunError: a logit is NaN or infinite.
        UserError: a row has no label, or a patient has two.
    """
    labels, probabilities = np.asarray(columns["label"], dtype=np.int64), softmax(logits)
    patients = to_patients(probabilities, columns["patient"], labels, columns["source"])
    _require_labels(patients)
    judged = overall(patients.labels, patients.probabilities)
    judged = {"val_loss": judged.pop("loss")} | judged
    confusion = Scores.of(patients.labels, patients.probabilities).confusion
    for (hits, misses, false_alarms, rejections), name in zip(_outcomes(confusion), class_names, strict=True):
        if hits + misses:
            judged[f"sensitivity_{name}"] = hits / (hits + misses)
        if false_alarms + rejections:
            judged[f"specificity_{name}"] = rejections / (false_alarms + rejections)
    recall = zip(class_names, Scores.of(labels, probabilities).recall.tolist(), strict=True)
    judged |= {f"slice_sensitivity_{name}": value for name, value in recall if np.isfinite(value)}
    return judged | {f"slice_{name}": value for name, value in overall(labels, probabilities).items()}


def evaluate(patients: Patients, class_names: Sequence[str], bootstrap: int = 1000, seed: int = 0) -> Evaluation:
    """Judge a model on patients, with 95 % intervals as `raymed.evaluation.intervals` forms them.

    Args:
        bootstrap: resamples behind the interval of the loss and behind the error of a perfectly calibrated model.

    Raises:
        UserError: a patient has no label, or there is no patient.
    """
    _require_labels(patients)
    labels, probabilities = patients.labels, patients.probabilities
    scores = Scores.of(labels, probabilities)
    counts = scores.confusion.sum(axis=1)
    rare = (counts > 0) & (counts < RARE)
    areas = [None] * len(counts) if patients.voted else _areas(scores)
    sources = sorted(set(map(str, patients.sources)))
    several = sources if len(sources) > 1 else []
    return Evaluation(
        patients=len(labels),
        unit=patients.unit,
        metrics=_metrics(patients, scores, rare, bootstrap, seed),
        classes=tuple(
            ClassFigures(
                name=name,
                support=hits + misses,
                decided=hits + false_alarms,
                rare=bool(rare[c]),
                sensitivity=share(hits, hits + misses),
                specificity=share(rejections, rejections + false_alarms),
                precision=share(hits, hits + false_alarms),
                f1=_estimable(intervals.f1(hits, misses, false_alarms), hits + misses) if hits + misses else None,
                auc=_estimable(areas[c], hits + misses),
            )
            for c, (name, (hits, misses, false_alarms, rejections)) in enumerate(
                zip(class_names, _outcomes(scores.confusion), strict=True)
            )
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in scores.confusion),
        calibration=None if patients.voted else Calibration.of(labels, probabilities, bootstrap, seed),
        roc=() if patients.voted else _roc(patients, class_names),
        sources=tuple(_source(name, patients, class_names, bootstrap, seed) for name in several),
        baselines=Baselines.of(patients, class_names, scores.confusion, seed),
    )


def difference_interval(a: Patients, b: Patients, bootstrap: int = 1000, seed: int = 0) -> Estimate:
    """Mean over patients of (loss of `a` - loss of `b`), with its paired bootstrap-t interval.

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
    return intervals.mean(difference, bootstrap, seed, -LARGEST_LOSS, LARGEST_LOSS)


def _require_labels(patients: Patients) -> None:
    if not len(patients.ids):
        raise UserError("There is no patient to judge: choose a split that has patients.")
    missing = patients.ids[patients.labels == UNKNOWN]
    if len(missing):
        named = ", ".join(str(patient) for patient in missing[:10])
        raise UserError(
            f"{len(missing)} patients have no label and cannot be judged: {named}. Judge labelled patients only."
        )


def _metrics(patients: Patients, scores: Scores, rare: np.ndarray, bootstrap: int, seed: int) -> dict[str, Estimate]:
    """Overall figures by name."""
    labels, counts = patients.labels, scores.confusion.sum(axis=1)
    metrics = {}
    if not patients.voted:
        metrics["loss"] = intervals.mean(losses(labels, patients.probabilities), bootstrap, seed, 0.0, LARGEST_LOSS)
    metrics["accuracy"] = intervals.wilson(float((patients.decisions == labels).mean()), len(labels))
    for ending, kept in {"": counts > 0, "_without_rare": (counts > 0) & ~rare}.items():
        if not kept.any() or (ending and not rare.any()):
            continue
        metrics[f"balanced_accuracy{ending}"] = intervals.mean_of_classes(scores.recall[kept], counts[kept])
        metrics[f"macro_f1{ending}"] = intervals.mean_of_classes(scores.f1[kept], counts[kept])
        areas = [area for area, keep in zip(_areas(scores), kept, strict=True) if keep and area is not None]
        if areas and not patients.voted:
            metrics[f"macro_auc{ending}"] = intervals.macro_auc(areas, scores.confusion[np.ix_(kept, kept)])
    return metrics


def _areas(scores: Scores) -> list[Estimate | None]:
    """The area of each class against the rest; None where all or no patients have it."""
    counts = scores.confusion.sum(axis=1).tolist()
    rows = sum(counts)
    return [
        intervals.auc(area, count, rows - count) if 0 < count < rows else None
        for area, count in zip(scores.auc.tolist(), counts, strict=True)
    ]


def _estimable(estimate: Estimate | None, patients: int) -> Estimate | None:
    """An estimate without its interval where it rests on one patient."""
    if estimate is None or patients > 1:
        return estimate
    return Estimate(estimate.value, None, None, "only 1")


def _outcomes(confusion: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Per class against all others: hits, misses, false alarms, correct rejections."""
    hits = confusion.diagonal()
    misses, false_alarms = confusion.sum(axis=1) - hits, confusion.sum(axis=0) - hits
    rejections = confusion.sum() - hits - misses - false_alarms
    return [tuple(map(int, counts)) for counts in zip(hits, misses, false_alarms, rejections, strict=True)]  # type: ignore[misc]


def _source(name: str, patients: Patients, class_names: Sequence[str], bootstrap: int, seed: int) -> SourceFigures:
    own = patients.part(patients.sources == name)
    scores = Scores.of(own.labels, own.probabilities)
    metrics = _metrics(own, scores, np.zeros(len(scores.recall), bool), bootstrap, seed)
    counts = scores.confusion.sum(axis=1)
    majority, share_of_it = class_names[int(counts.argmax())], float(counts.max() / counts.sum())
    return SourceFigures(name, len(own.ids), len(own.ids) < RARE, majority, share_of_it, metrics)


def _roc(patients: Patients, class_names: Sequence[str]) -> tuple[RocCurve, ...]:
    curves = []
    for c, name in enumerate(class_names):
        having = patients.labels == c
        if having.any() and not having.all():
            false_positive, true_positive, _ = roc_curve(having, patients.probabilities[:, c])
            curves.append(RocCurve(name, tuple(false_positive.tolist()), tuple(true_positive.tolist())))
    return tuple(curves)
