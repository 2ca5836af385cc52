"""An evaluation as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from raymed.evaluation.comparison import comparison
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import RARE, Evaluation
from raymed.language import at_right, padded, places, say

COLUMNS = ("sensitivity", "specificity", "precision", "auc")


def lines(evaluation: Evaluation, names: Sequence[str] = ()) -> list[str]:
    """Figures with 95 % intervals, per class, per source, and who was taken for whom.

    Args:
        names: what a reader is shown of the classes, in place of their names.
    """
    names = names or [each.name for each in evaluation.classes]
    called = dict(zip((each.name for each in evaluation.classes), names, strict=True))
    wide = max(26, *map(len, evaluation.metrics)) + 2
    text = [padded(say(name), wide) + show(estimate) for name, estimate in evaluation.metrics.items()]
    if (calibration := evaluation.calibration) is not None:
        text += [
            padded(say("ece"), wide)
            + say(
                "{error:.3f} (perfectly calibrated: {perfect:.3f}, by chance up to {most:.3f})",
                error=calibration.error,
                perfect=calibration.perfect,
                most=calibration.perfect_high,
            ),
            padded(say("calibration_slope"), wide) + show(calibration.slope),
            padded(say("calibration_gap"), wide) + show(calibration.gap),
        ]
    sentences = comparison(evaluation, called)
    column = max(wide, *(places(title) + 2 for title in sentences))
    unit, units = say(evaluation.unit), say(evaluation.units)
    text += ["", say("compared with"), *(padded(title, column) + sentence for title, sentence in sentences.items())]
    text += ["", padded(say("class ({units})", units=units), 24) + "".join(padded(say(name), 22) for name in COLUMNS)]
    for name, each in zip(names, evaluation.classes, strict=True):
        title = f"{name}{'*' if each.rare else ''} ({each.support})"
        text.append(padded(title, 24) + "".join(f"{show(getattr(each, name)):<22}" for name in COLUMNS))
    if True in [each.rare for each in evaluation.classes] + [each.rare for each in evaluation.sources]:
        fewer = say(
            "* fewer than {rare} {units}: one {unit} more would change these figures", rare=RARE, units=units, unit=unit
        )
        text.append(fewer)
    text += ["", say("{units} by class (row) and decision (column)", units=units), *crosswise(names, evaluation.confusion)]
    for source in evaluation.sources:
        text += ["", f"{source.name}{'*' if source.rare else ''}: {source.patients} {units}"]
        always = say("always {majority}", majority=called.get(source.majority, source.majority))
        text.append(f"  {padded(always, wide)}{source.majority_accuracy:.3f}")
        text += [f"  {padded(say(name), wide)}{show(estimate)}" for name, estimate in source.metrics.items()]
    return [line.rstrip() for line in text]


def crosswise(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[str]:
    """A table of counts by class (row) and decision (column)."""
    text = [" " * 16 + "".join(at_right(name, 14) for name in names)]
    for name, row in zip(names, confusion, strict=True):
        text.append(padded(name, 16) + "".join(f"{count:>14}" for count in row))
    return text


def show(estimate: Estimate | None) -> str:
    """A figure and its interval; a dash where it cannot be formed."""
    return "–" if estimate is None else str(estimate)
