"""What is told about a search, whatever its system: its trials, its data, what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from raymed.data.usage import Usage
from raymed.evaluation.estimate import Estimate
from raymed.recipes.metric import VAL_LOSS, Metric

State = Literal["COMPLETE", "PRUNED", "FAILED", "RUNNING"]


@dataclass(frozen=True)
class TrialSummary:
    """One trial of a search.

    Attributes:
        number: in the order of the search, from 0.
        state: COMPLETE, PRUNED (stopped early), FAILED, or RUNNING when the search ended.
        reason: why it failed, or what stopped it; empty otherwise.
        took: hours of its workers, and money where prices are known, in words.
        params: the parameters that the search chose.
        curve: one entry per validation, with ``epoch`` (or step) and the objective's ``value``.
        best_epoch: the epoch (or step) that is the best by the objective.
        value: its value of the objective; None if there is none.
        difference: by how much its loss is above the best trial's over the same patients; None where that is not known.
        tie: the interval of that difference holds zero.
        run_id: the MLflow run.
    """

    number: int
    state: State
    params: Mapping[str, Any]
    curve: Sequence[Mapping[str, float]] = ()
    best_epoch: int | None = None
    value: float | None = None
    difference: Estimate | None = None
    tie: bool = False
    run_id: str = ""
    reason: str = ""
    took: str = ""


@dataclass(frozen=True)
class DataSummary:
    """What was trained and judged on.

    Attributes:
        source: where the data came from.
        digest: of the prepared data.
        usage: patients and slices that were really used, of those there are.
        quarantined: slices refused when the data were prepared.
        left_out: patients of whom no slice can be used.
        near_duplicates: what was done about patients who share near-duplicate pictures, in words.
        guard: what the leak guard proved, in words.
    """

    source: str
    digest: str
    usage: Usage
    quarantined: int
    left_out: int
    near_duplicates: str
    guard: str


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """A search and its trials.

    Attributes:
        name: of the search.
        system: e.g. ``lung``.
        model: how to ask for the registered model, e.g. ``models:/raymed-lung@champion``.
        started: when the search began.
        seconds: how long it took.
        trials: in any order.
        champion: number of the trial that won.
        data: what was trained and judged on.
        command: what to type to get this search again.
        looks: how many models the test patients have judged so far.
        cost: what it took, as words by name, e.g. ``{"CPU hours": "3.1"}``.
        importance: share of each parameter in what tells the best trials from the others (PED-ANOVA); empty where chance
            explains it, None where there are too few trials or parameters to ask.
        objective: what trials were compared by.
        versions: of packages.
        counted: by what validations are: epoch, or step.
    """

    name: str
    system: str
    model: str
    started: datetime
    seconds: float
    trials: Sequence[TrialSummary]
    champion: int
    data: DataSummary
    command: str
    looks: int = 1
    cost: Mapping[str, str] = field(default_factory=dict)
    importance: Mapping[str, float] | None = None
    objective: Metric = VAL_LOSS
    versions: Mapping[str, str] = field(default_factory=dict)
    counted: str = "epoch"
