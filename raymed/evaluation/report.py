"""The page to look at in the morning: one self-contained HTML file per search.

Nothing is fetched when it is opened: figures are inline SVG, slices are embedded PNG, and there is no script. Everything
that comes from data is escaped by the template.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from raymed.evaluation import figures, search_figures
from raymed.evaluation.comparison import comparison
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import RARE, Evaluation
from raymed.evaluation.page import environment
from raymed.evaluation.search_summary import SearchSummary, TrialSummary
from raymed.evaluation.single_slices import SingleSlices
from raymed.evaluation.style import as_svg
from raymed.language import say

THUMBNAIL = 160  # pixels: enough to see what kind of slice it is, without a page of tens of megabytes


@dataclass(frozen=True)
class HardPatient:
    """A patient that the model got most wrong.

    Attributes:
        id: patient id.
        label: class index.
        probabilities: what the model gave each class.
        slices: what the model saw, uint8 [height, width] or [height, width, 1 or 3].
    """

    id: str
    label: int
    probabilities: Sequence[float]
    slices: Sequence[np.ndarray] = ()


@dataclass(frozen=True, kw_only=True)
class SearchReport(SearchSummary):
    """Everything the page shows of a classifier's search.

    Attributes:
        names: class names as readers see them, in the order of the label table.
        validation: figures of the champion, temperature-scaled.
        test: figures on test patients, seen once; None if there are none.
        temperature: that of the champion, in words.
        hardest: patients that the champion got most wrong, the worst first.
        hardest_split: which split they are from.
        notes: sentences that a reader must not miss.
        single: what the champion says of single slices of the judged patients; None where none has several.
    """

    names: Sequence[str]
    validation: Evaluation
    test: Evaluation | None
    temperature: str
    hardest: Sequence[HardPatient] = ()
    hardest_split: str = "validation"
    notes: Sequence[str] = ()
    single: SingleSlices | None = None


METRICS = {
    "accuracy": ("Accuracy", "share of {units} whose decision is right"),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity of the classes"),
    "macro_auc": ("Macro AUC", "area under the ROC curve, one class against the rest, mean over classes"),
    "macro_f1": ("Macro F1", "mean F1 of the classes"),
    "loss": ("Loss", "negative log likelihood of the {unit}'s probability; lower is better"),
}
SHARES = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision")  # shown as percentages


def render(report: SearchReport) -> str:
    """The page as one HTML document."""
    sign = 1 if report.objective.direction == "min" else -1
    trials = sorted(report.trials, key=lambda trial: (math.inf if trial.value is None else sign * trial.value, trial.number))
    champion = next(trial for trial in trials if trial.number == report.champion)
    varied, same = _columns(trials)
    judged = report.test or report.validation
    shown = dict(zip((one.name for one in judged.classes), report.names, strict=True))
    templates = environment("raymed.evaluation")
    templates.filters |= {"estimate": _estimate, "duration": _duration, "value": _value, "picture": picture_uri}
    return templates.get_template("report.html").render(
        report=report,
        trials=trials,
        champion=champion,
        objective=search_figures.title(report.objective),
        best=say("lowest") if sign > 0 else say("highest"),
        default=next((trial for trial in trials if trial.number == 0 and trial.number != champion.number), None),
        states={
            state: sum(trial.state == state for trial in trials) for state in ("COMPLETE", "PRUNED", "FAILED", "RUNNING")
        },
        ties=[trial.number for trial in trials if trial.tie and trial.number != champion.number],
        varied=varied,
        same=same,
        judged=judged,
        judged_on=say("test") if report.test else say("validation"),
        hardest_split=say(report.hardest_split),
        tiles=_tiles(judged, report.validation if report.test else None),
        rare=RARE,
        comparison=comparison(judged, shown),
        metrics={name: (say(title), _meaning(name, judged)) for name, (title, _) in METRICS.items()},
        counted=say(report.counted),
        unit=say(judged.unit),
        units=say(judged.units),
        of_patients=judged.unit == "patient",
        short_names=[each.name for each in judged.classes],
        shown=shown,
        pictures={name: Markup(svg) for name, svg in _figures(report, trials, varied, judged).items()},
    )


@dataclass(frozen=True)
class _Tile:
    """A figure on the front. validation: the same of the validation patients, where it is about test patients."""

    name: str
    title: str
    meaning: str
    estimate: Estimate
    validation: Estimate | None


def _tiles(judged: Evaluation, validation: Evaluation | None) -> list[_Tile]:
    """The figures to see first. Rare classes are not in them, nor those that nobody has, and that is said; where all are
    rare, there is no mean over classes."""
    classes = [one for one in judged.classes if one.support]
    common = sum(not one.rare for one in classes)
    tiles = []
    for name in ("accuracy", "macro_auc", "loss"):
        title, key = say(METRICS[name][0]), name
        if name == "macro_auc" and common < len(judged.classes):
            title = say("Macro AUC of {common} of {count} classes", common=common, count=len(judged.classes))
            key = f"{name}_without_rare" if common < len(classes) else name
        if key in judged.metrics:
            other = _same_classes(validation, name, _averaged(judged, key)) if validation else None
            tiles.append(_Tile(name, title, _meaning(name, judged), judged.metrics[key], other))
    return tiles


def _meaning(name: str, judged: Evaluation) -> str:
    """What a figure says."""
    return say(METRICS[name][1], unit=say(judged.unit), units=say(judged.units))


def _averaged(evaluation: Evaluation, key: str) -> set[str]:
    """The classes that a mean over classes is over."""
    return {one.name for one in evaluation.classes if one.support and not (one.rare and key.endswith("_without_rare"))}


def _same_classes(evaluation: Evaluation, name: str, classes: set[str]) -> Estimate | None:
    """A figure; of a mean over classes that over just these, which alone can stand beside another one; None without it."""
    keys = [name] if name != "macro_auc" else [name, f"{name}_without_rare"]
    alike = [key for key in keys if name != "macro_auc" or _averaged(evaluation, key) == classes]
    return next((evaluation.metrics[key] for key in alike if key in evaluation.metrics), None)


def _columns(trials: Sequence[TrialSummary]) -> tuple[list[str], dict[str, Any]]:
    """Names of the parameters that differ between trials, and the others with their one value."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    values = {name: [trial.params.get(name) for trial in trials] for name in names}
    same = {name: column[0] for name, column in values.items() if all(value == column[0] for value in column)}
    return [name for name in names if name not in same], same


def _figures(
    report: SearchReport, trials: Sequence[TrialSummary], varied: Sequence[str], judged: Evaluation
) -> dict[str, str]:
    with_value = [trial for trial in trials if trial.value is not None]
    drawn = search_figures.course(report) | {
        "roc": as_svg(figures.roc(judged, report.names), say("ROC curve of each class against the rest.")),
    }
    if judged.calibration is not None:
        drawn["reliability"] = as_svg(
            figures.reliability(judged.calibration, judged.units),
            say("Share of right decisions against confidence; the table of bins follows."),
        )
    if shares := report.importance:
        largest = max(shares, key=shares.__getitem__)
        drawn["importance"] = as_svg(
            search_figures.importance(shares),
            say("PED-ANOVA importance; the most important parameter is {largest}.", largest=largest),
        )
    if varied and len(with_value) > 1:
        drawn["parallel"] = as_svg(
            search_figures.parallel_coordinates(
                {name: [trial.params.get(name) for trial in with_value] for name in varied},
                [trial.value for trial in with_value if trial.value is not None],
                [trial.state == "COMPLETE" for trial in with_value],
                [trial.tie for trial in with_value],
                [trial.number for trial in with_value].index(report.champion),
                report.objective,
            ),
            say(
                "One line per trial through its parameters to its {title}; the trial table has the values.",
                title=search_figures.title(report.objective),
            ),
        )
    return drawn


def _estimate(estimate: Estimate, name: str) -> dict[str, str]:
    """An estimate in words: ``value`` and ``interval``; shares as percentages."""
    if name in SHARES:
        return {
            "value": f"{100 * estimate.value:.1f} %",
            "interval": estimate.interval(digits=1, scale=100, between=" – "),
        }
    return {"value": f"{estimate.value:.3f}", "interval": estimate.interval(between=" – ")}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return say("{hours} h {minutes} min", hours=hours, minutes=minutes)
    return say("{minutes} min {seconds} s", minutes=minutes, seconds=rest) if minutes else say("{seconds} s", seconds=rest)


def _value(value: Any) -> str:
    """A parameter as a person would write it."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def picture_uri(pixels: np.ndarray, side: int = THUMBNAIL) -> str:
    """A slice as a data URI of a small PNG.

    Args:
        side: most pixels of its longer side.
    """
    image = Image.fromarray(pixels.squeeze())
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
