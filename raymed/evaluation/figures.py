"""Figures of a model and its data, for MLflow and for the report.

Class names are drawn in the reader's language where the fonts of this machine have its characters, else in English.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from raymed.evaluation.metrics import Evaluation
from raymed.evaluation.reliability import Calibration
from raymed.evaluation.style import ACCENT, FAINT, INK, MUTED, PAPER, SERIES, WARNING, drawable, label, styled


@styled
def confusion(cells: Sequence[Sequence[int]], names: Sequence[str], class_names: Sequence[str]) -> Figure:
    """Patients, or slices, by class (row) and decision (column): counts, and the share of the row.

    Args:
        names: of the classes as readers see them; likewise `class_names`, where the fonts lack their characters.
    """
    shown = drawable(names, class_names)
    counts = np.array(cells)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.8 + 1.05 * len(shown), 1.2 + 0.95 * len(shown)))
    axes = figure.subplots()
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("share", [PAPER, ACCENT]), vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        colour = PAPER if shares[row, column] > 0.5 else INK
        share = f"{shares[row, column]:.0%}" if counts[row].any() else "–"
        text = f"{counts[row, column]}\n{share}"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(shown)), shown)
    axes.set_yticks(range(len(shown)), shown)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(visible=False)
    axes.set(xlabel=label("decision"), ylabel=label("diagnosis"))
    return figure


@styled
def reliability(calibration: Calibration, units: str = "patients") -> Figure:
    """Share of right decisions against confidence; a calibrated model lies on the diagonal. Bars below: patients per bin.

    Args: units: what patients are called.
    """
    figure = Figure(figsize=(5.2, 4.6))
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle="--")
    bins = calibration.bins
    patients = sum(found.patients for found in bins)
    sizes = [20 + 160 * found.patients / patients for found in bins]
    confidences = [found.confidence for found in bins]
    for found in bins:
        axes.plot([found.confidence] * 2, [found.confidence, found.accuracy], color=WARNING, linewidth=1.5, zorder=1)
    axes.scatter(confidences, [found.accuracy for found in bins], s=sizes, color=ACCENT, zorder=2)
    counts.bar([(found.low + found.high) / 2 for found in bins], [found.patients for found in bins], 0.055, color=MUTED)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.04), ylabel=label("share of decisions that are right"))
    counts.set(xlabel=label("confidence of the decision"), ylabel=label(units))
    return figure


@styled
def roc(evaluation: Evaluation, names: Sequence[str]) -> Figure:
    """One curve per class against all others."""
    shown = dict(zip((figures.name for figures in evaluation.classes), _shown(evaluation, names), strict=True))
    areas = {figures.name: figures.auc for figures in evaluation.classes}
    figure = Figure(figsize=(5.2, 4.6))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle="--")
    for number, curve in enumerate(evaluation.roc):
        area = areas[curve.name]
        axes.plot(
            curve.false_positive,
            curve.true_positive,
            color=SERIES[number % len(SERIES)],
            linestyle=("-", "--", ":")[number // len(SERIES) % 3],
            linewidth=2,
            label=f"{shown[curve.name]}  {area.value:.3f}" if area else shown[curve.name],
        )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=label("1 - specificity"), ylabel=label("sensitivity"))
    axes.legend(loc="lower right", title=label("area under the curve"), alignment="left")
    return figure


def _shown(evaluation: Evaluation, names: Sequence[str]) -> list[str]:
    return drawable(names, [figures.name for figures in evaluation.classes])


@styled
def training_history(history: Mapping[str, Sequence[float]]) -> Figure:
    """Loss and accuracy by epoch, in training and in validation; accuracies in percent."""
    figure = Figure(figsize=(9.2, 3.8))
    for axes, name, title in zip(figure.subplots(1, 2), ("loss", "acc"), ("Loss", "Accuracy (%)"), strict=True):
        for number, (part, words) in enumerate({"train": "training", "val": "validation"}.items()):
            if not (values := history[f"{part}_{name}"]):
                continue
            axes.plot(range(1, len(values) + 1), values, color=SERIES[number], linewidth=2, label=label(words))
        axes.set(xlabel=label("Epoch"), ylabel=label(title))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure
