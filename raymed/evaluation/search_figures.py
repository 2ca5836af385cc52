"""Figures of a search: its trials, their curves and their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raymed.evaluation.search_summary import SearchSummary
from raymed.evaluation.style import ACCENT, FAINT, INK, MUTED, PAPER, WARNING, as_svg, label, styled
from raymed.language import say
from raymed.recipes.metric import VAL_LOSS, Metric


def course(search: SearchSummary) -> dict[str, str]:
    """SVGs of how a search went: `curves` of its trials, and the `history` of their best values."""
    curves = {
        trial.number: [
            (entry["epoch"], entry["value"]) for entry in trial.curve if math.isfinite(entry.get("value", math.nan))
        ]
        for trial in search.trials
    }
    values = {trial.number: trial.value for trial in search.trials if trial.value is not None}
    finished = {trial.number: trial.state == "COMPLETE" for trial in search.trials}
    failed = [trial.number for trial in search.trials if trial.state == "FAILED"]
    name = title(search.objective)
    return {
        "curves": as_svg(
            learning_curves(curves, search.champion, search.objective, search.counted),
            say(
                "{title} by {counted} of {count} trials; trial {best} is the best.",
                title=name.capitalize(),
                counted=say(search.counted),
                count=len(values),
                best=search.champion,
            ),
        ),
        "history": as_svg(
            history(values, finished, failed, search.objective),
            say("Best {title} of each trial in the order of the search.", title=name),
        ),
    }


def title(objective: Metric) -> str:
    """What an objective's axis is called."""
    if objective == VAL_LOSS:
        return say("validation loss")
    return objective.name + (f" ({objective.unit})" if objective.unit else "")


def _axis(objective: Metric) -> str:
    return label("validation loss") if objective == VAL_LOSS else title(objective)


def _better_part(values: np.ndarray, objective: Metric) -> tuple[float, float]:
    """Ends of an axis that shows the better 95 % of the values."""
    if objective.direction == "min":
        return float(values.min()), float(np.quantile(values, 0.95))
    return float(np.quantile(values, 0.05)), float(values.max())


@styled
def learning_curves(
    curves: Mapping[int, Sequence[tuple[float, float]]], best: int, objective: Metric = VAL_LOSS, counted: str = "epoch"
) -> Figure:
    """The objective by epoch (or step) of every trial, [(epoch, value)] by trial number; the best trial stands out.

    The axis ends beyond the better 95 %, so that a trial that diverged does not flatten the others.
    """
    figure = Figure(figsize=(5.4, 3.6))
    axes = figure.subplots()
    for number, curve in curves.items():
        if number != best and curve:
            axes.plot(*zip(*curve, strict=True), color=FAINT, linewidth=1, marker="." if len(curve) == 1 else "")
    values = np.array([value for curve in curves.values() for _, value in curve])
    if curves.get(best):
        epochs, own = zip(*curves[best], strict=True)
        axes.plot(epochs, own, color=ACCENT, linewidth=2.4, label=f"{label('trial')} {best}")
        best_epoch, value = epochs[own.index(objective.best(own))], objective.best(own)
        axes.plot(best_epoch, value, "o", color=ACCENT, markersize=7)
        axes.annotate(
            f"{value:.3f}", (best_epoch, value), (0, -15), textcoords="offset points",
            ha="center", color=ACCENT, weight="bold",
        )  # fmt: skip
        axes.legend(loc="upper right" if objective.direction == "min" else "lower right")
    if len(values):
        low, high = _better_part(values, objective)
        room = max(high - low, 0.01 * abs(high), 1e-6)
        axes.set_ylim(low - 0.18 * room, high + 0.08 * room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=label(counted), ylabel=_axis(objective))
    return figure


@styled
def history(
    values: Mapping[int, float], finished: Mapping[int, bool], failed: Sequence[int], objective: Metric = VAL_LOSS
) -> Figure:
    """Each trial's best value of the objective in the order of the search, and the best so far.

    Args:
        values: by trial number.
        finished: by trial number, whether it ran to its end; the others were stopped early.
        failed: trials without a value.
    """
    figure = Figure(figsize=(5.4, 3.6))
    axes = figure.subplots()
    numbers = sorted(values)
    reached = np.array([values[number] for number in numbers])
    best_so_far = np.minimum if objective.direction == "min" else np.maximum
    done = np.array([finished[number] for number in numbers], dtype=bool)
    order = np.array(numbers)
    if len(reached):
        axes.step(
            order, best_so_far.accumulate(reached), where="post", color=ACCENT, linewidth=2, label=label("best so far")
        )
    axes.plot(order[done], reached[done], "o", color=INK, markersize=5, label=label("finished"))
    axes.plot(
        order[~done], reached[~done], "o", color=MUTED, markersize=5, markerfacecolor="none", label=label("stopped early")
    )
    if len(reached):
        low, high = _better_part(reached, objective)
        room = max(high - low, 0.01 * abs(high), 1e-6)
        axes.set_ylim(low - 0.1 * room, high + 0.15 * room)
    if failed:
        top = axes.get_ylim()[1]
        axes.plot(failed, [top] * len(failed), "x", color=WARNING, markersize=7, clip_on=False, label=label("failed"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=label("trial"), ylabel=_axis(objective))
    figure.legend(loc="outside upper left", ncols=4, handletextpad=0.4, columnspacing=1.0, handlelength=1.4)
    return figure


@styled
def importance(shares: Mapping[str, float]) -> Figure:
    """Share of each parameter in what tells the best trials from the others, largest first."""
    names = sorted(shares, key=lambda name: shares[name])
    figure = Figure(figsize=(6.4, 0.7 + 0.34 * len(names)))
    axes = figure.subplots()
    axes.barh(names, [shares[name] for name in names], color=ACCENT, height=0.6)
    for row, name in enumerate(names):
        axes.annotate(
            f"{shares[name]:.0%}", (shares[name], row), (5, 0), textcoords="offset points", va="center", color=MUTED
        )
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(
        xlabel=label("PED-ANOVA: share in what the best trials have in common"),
        xlim=(0, max([*shares.values(), 0.01]) * 1.12),
    )
    return figure


@styled
def parallel_coordinates(
    columns: Mapping[str, Sequence[Any]],
    reached: Sequence[float],
    finished: Sequence[bool],
    near: Sequence[bool],
    best: int,
    objective: Metric = VAL_LOSS,
) -> Figure:
    """One line per trial through its parameters to its value of the objective.

    Args:
        columns: parameter values by name, one per trial; None where a trial does not have it.
        reached: best value of each trial.
        finished: whether the trial ran to its end; the others are drawn faint.
        near: whether the trial is a tie with the best.
        best: row of the best trial.
    """
    scales = {name: _scale(values) for name, values in columns.items()}
    scales[objective.name] = _scale(reached)
    heights = np.array([positions for positions, _ in scales.values()], dtype=float)
    figure = Figure(figsize=(max(6.4, 1.15 * len(scales)), 4.0))
    axes = figure.subplots()
    for row in sorted(range(len(reached)), key=lambda row: (row == best, near[row], finished[row])):
        if row == best:
            look: dict[str, Any] = {"color": ACCENT, "linewidth": 2.6}
        elif near[row]:
            look = {"color": ACCENT, "linewidth": 1.0}
        else:
            look = {"color": MUTED if finished[row] else FAINT, "linewidth": 0.8}
        axes.plot(range(len(scales)), heights[:, row], **look)
    for place, (_, ticks) in enumerate(scales.values()):
        axes.axvline(place, color=FAINT, linewidth=1, zorder=0)
        for height, text in ticks:
            axes.annotate(
                text, (place, height), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    axes.set_xticks(range(len(scales)), [name.replace(".", ".\n") for name in scales], color=INK, fontsize=9)
    axes.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.1, len(scales) - 0.55))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    return figure


def _scale(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights 0..1 of the values (NaN for None), and labelled ticks.

    Numbers lie on the scale, linear or logarithmic, that brings their median nearer to the middle.
    """
    given = [value for value in values if value is not None]
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given):
        kinds = sorted({str(value) for value in given})
        at = {kind: (place + 0.5) / len(kinds) for place, kind in enumerate(kinds)}
        return [np.nan if value is None else at[str(value)] for value in values], [(at[kind], kind) for kind in kinds]
    low, high = min(given), max(given)
    logarithmic = low > 0 and high / low > 10 and _off_middle(np.log(given)) < _off_middle(np.array(given))
    marks = sorted(set(given))
    if len(marks) > 4:
        marks = (np.geomspace if logarithmic else np.linspace)(low, high, 4).tolist()

    def height(value: float) -> float:
        if high == low:
            return 0.5
        return float(np.log(value / low) / np.log(high / low)) if logarithmic else (value - low) / (high - low)

    ticks = [(height(mark), f"{mark:.2g}" if mark < 100 else f"{mark:.0f}") for mark in marks]
    return [np.nan if value is None else height(value) for value in values], ticks


def _off_middle(values: np.ndarray) -> float:
    """How far the median lies from the middle of the range, as a share of it."""
    low, high = values.min(), values.max()
    return float(abs(np.median(values) - (low + high) / 2) / (high - low))
