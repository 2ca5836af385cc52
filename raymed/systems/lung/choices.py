"""How many slices of a patient, and how they decide: compared on the same patients, from one look at all of their slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.evaluation import intervals
from raymed.evaluation.calibration import Temperature, fit_temperature
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import difference_interval
from raymed.evaluation.patients import Aggregation, Patients
from raymed.evaluation.scores import overall
from raymed.language import at_right, padded, say

METHODS: tuple[Aggregation, ...] = ("mean", "vote", "log-mean")


@dataclass(frozen=True)
class Choice:
    """One way to decide about a patient, and what it is worth on some.

    Attributes:
        slices: how many of a patient's; 0 for all.
        method: how they decide: one of `METHODS`, or attention, which weighs them.
        temperature: fitted on these patients, as most of them have it.
        accuracy: share of the patients who are given their class.
        balanced_accuracy: mean of the classes' sensitivities.
        loss: negative log likelihood; None of votes, which are no probabilities.
        more_accurate: by how much its accuracy is above that of the first of the choices; None of the first itself.
        more_loss: by how much its loss is; None likewise, and of votes.
    """

    slices: int
    method: str
    temperature: float
    accuracy: float
    balanced_accuracy: float
    loss: float | None
    more_accurate: Estimate | None = None
    more_loss: Estimate | None = None

    def __str__(self) -> str:
        name = f"{at_right(str(self.slices or say('all')), 4)} {self.method:<9}"
        loss = "–" if self.loss is None else f"{self.loss:.3f}"
        own = f"{name} {self.accuracy:>10.3f} {self.balanced_accuracy:>10.3f} {loss:>7}   "
        if self.more_accurate is None:
            return own + say("what the others are compared with")
        return own + padded(str(self.more_accurate), 24) + ("–" if self.more_loss is None else str(self.more_loss))


def heading() -> str:
    """What stands above the choices."""
    figures = at_right(say("accuracy"), 10) + " " + at_right(say("balanced"), 10) + " " + at_right(say("loss"), 7)
    return f"{'K':>4} {padded(say('method'), 9)} {figures}   {padded(say('accuracy, more'), 24)}{say('loss, more')}"


def compare(
    logits: np.ndarray,
    columns: dict[str, np.ndarray],
    chosen: Sequence[tuple[int, np.ndarray]],
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[Choice]:
    """Judge each number of slices under each method; all are compared, patient by patient, with the mean over the first.

    Args:
        logits: of all slices, [rows, classes].
        columns: index columns of the same rows: ``patient``, ``label``, ``source``.
        chosen: how many slices of a patient (0 = all), and at which places of the rows they are.
        bootstrap: resamples of patients behind the intervals of the loss.

    Raises:
        UserError: a patient has no label.
    """
    choices: list[Choice] = []
    first: Patients | None = None
    for slices, places in chosen:
        part = {name: column[places] for name, column in columns.items()}
        for method in METHODS:
            temperature = _temperature(logits[places], part, method)
            patients = temperature.pool(logits[places], part, method)
            choices.append(choice(slices, method, temperature, patients, first, bootstrap, seed))
            first = first or patients
    return choices


def choice(
    slices: int,
    method: str,
    temperature: Temperature,
    patients: Patients,
    first: Patients | None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Choice:
    """What patients' decisions are worth, beside the first ones, which are of the same patients (None: these are)."""
    figures = overall(patients.labels, patients.probabilities)
    alone = Choice(
        slices,
        method,
        float(temperature.of(np.median(patients.slices))),
        figures["accuracy"],
        figures["balanced_accuracy"],
        None if patients.voted else figures["loss"],
    )
    if first is None:
        return alone
    right, others = (each.decisions == each.labels for each in (patients, first))
    return replace(
        alone,
        more_accurate=intervals.difference_of_shares(right, others),
        more_loss=None if patients.voted else difference_interval(patients, first, bootstrap, seed),
    )


def places_of(
    prepared: Prepared, rows: np.ndarray, slices: SliceSettings, numbers: Sequence[int], seed: int
) -> list[tuple[int, np.ndarray]]:
    """For each number of slices of a patient (0 = all), at which places of `rows` those are that would be chosen."""
    choice = "uniform" if slices.choice == "all" else slices.choice
    settings = {
        number: replace(slices, choice="all") if not number else replace(slices, per_patient=number, choice=choice)
        for number in numbers
    }
    return [(number, np.searchsorted(rows, each.choose(prepared, rows, seed, None))) for number, each in settings.items()]


def _temperature(logits: np.ndarray, columns: dict[str, np.ndarray], method: Aggregation) -> Temperature:
    """Fitted for the way in which the slices decide; votes ask for none."""
    if method == "vote":
        return Temperature()
    patients, labels = columns["patient"], columns["label"]
    if method == "log-mean":  # the softmax of the mean logits, each patient being one row then
        ids, first, owner = np.unique(patients, return_index=True, return_inverse=True)
        logits = np.stack([logits[owner == each].mean(axis=0) for each in range(len(ids))])
        patients, labels = ids, labels[first]
    return fit_temperature(logits, patients, labels)
