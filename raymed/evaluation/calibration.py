"""Temperature scaling: what makes a patient's probabilities mean what they say, whatever the number of slices.

The slices are pooled first, then the pooled probabilities are scaled (after Guo et al. 2017, who have one input). Slices of
a patient err together, so many of them say more than one, but not as much more as there are: with correlation rho, n slices
are worth n / (1 + (n - 1) rho) of them (the design effect, Kish 1965). The temperature that goes with that is linear in
1 / n and has two numbers, that of one slice and that of ever more. Single slices of the same patients tell the first.

They are fitted with a weak prior for leaving the model alone and for slices that all say the same: the logarithms of the
first and of the ratio of the two are normal around 0, a factor of two being one standard deviation. On hundreds of patients
the prior is not felt; on a few, or where every patient is right and the likelihood alone would ask for certainty, it keeps
the temperature sober.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.special import softmax as power

from raymed.errors import UserError
from raymed.evaluation.patients import Aggregation, Patients, softmax, to_patients
from raymed.evaluation.scores import SMALLEST_PROBABILITY
from raymed.language import say

SPREAD = np.log(2)  # of log T, under the prior
BOUNDS = (0.05, 20.0)

log = logging.getLogger("raymed")


@dataclass(frozen=True)
class Temperature:
    """What the logarithms of a patient's pooled probabilities are divided by: ``many + (one - many) / n`` of n slices.

    Decisions stay as they are. As it stands here, it changes nothing.

    Attributes:
        one: of one slice.
        many: what it comes to with ever more slices.
        logits: what each slice's logits are divided by before they are pooled: of models that were registered before
            temperatures knew the number of slices.
    """

    one: float = 1.0
    many: float = 1.0
    logits: float = 1.0

    def of(self, slices: np.ndarray | float) -> np.ndarray:
        """The temperature of so many slices."""
        return self.many + (self.one - self.many) / np.asarray(slices, dtype=np.float64)

    def scale(self, probabilities: np.ndarray, slices: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, [patients, classes], of pooled ones and the number of slices behind each, [patients]."""
        scaled: np.ndarray = power(_logs(probabilities) / self.of(slices)[:, None], axis=1)
        return probabilities if self.one == self.many == 1 else scaled

    def pool(
        self,
        logits: np.ndarray,
        columns: Mapping[str, np.ndarray],
        method: Aggregation = "mean",
        unit: str = "patient",
    ) -> Patients:
        """Calibrated probabilities of patients. Shares of votes are left as they are, for they are none.

        Args:
            logits: [rows, classes], one row per slice.
            columns: index columns of the same rows: ``patient``, ``label``, ``source``.
            method, unit: see `to_patients`.

        Raises:
            RunError, UserError: as `to_patients`.
        """
        slices = softmax(logits, self.logits)
        patients = to_patients(slices, columns["patient"], columns["label"], columns["source"], method, unit)
        if patients.voted:
            return patients
        return replace(patients, probabilities=self.scale(patients.probabilities, patients.slices))

    def words(self, slices: int) -> str:
        """For a person, who has patients of so many slices."""
        if self.logits != 1:
            return say("temperature {temperature:.3f}", temperature=self.logits)
        if slices == 1:
            return say("temperature {temperature:.3f}", temperature=self.of(1))
        return say(
            "temperature {one:.3f} with one slice, {many:.3f} with {slices}",
            one=self.of(1),
            many=self.of(slices),
            slices=slices,
        )

    @classmethod
    def read(cls, noted: Mapping[str, float] | float) -> Temperature:
        """From `dataclasses.asdict`, or the number that an earlier raymed noted."""
        return cls(**noted) if isinstance(noted, Mapping) else cls(logits=float(noted))


def fit_temperature(logits: np.ndarray, patients: np.ndarray, labels: np.ndarray) -> Temperature:
    """The most probable temperature (maximum a posteriori), given the patients' labels.

    Each patient tells it twice, with the mean probabilities of all slices and with those of single ones.

    Args:
        logits: [rows, classes], one row per slice.
        patients: patient id of each row.
        labels: class index of each row.

    Raises:
        UserError: a row has no label.
    """
    if (labels < 0).any():
        raise UserError(
            f"{int((labels < 0).sum())} slices have no label: a temperature is fitted on labelled patients only."
        )
    probabilities, nowhere = softmax(logits), np.full(len(labels), "", object)
    pooled = to_patients(probabilities, patients, labels, nowhere)
    owner = np.searchsorted(pooled.ids, np.asarray(patients, dtype=object))
    several = pooled.slices[owner] > 1  # of one slice the pooled probabilities have said all
    weights = (1 / pooled.slices[owner])[several]
    whole, single, own = _logs(pooled.probabilities), _logs(probabilities)[several], labels[several]

    def loss(temperature: Temperature) -> float:
        return float(_nats(whole / temperature.of(pooled.slices)[:, None], pooled.labels).sum())

    def temperature_at(point: np.ndarray) -> Temperature:
        one, many = np.exp([point[0], point.sum()]).clip(*BOUNDS).tolist()
        return Temperature(one, many)

    def objective(point: np.ndarray) -> float:
        temperature = temperature_at(point)
        alone = float(weights @ _nats(single / temperature.one, own))
        return loss(temperature) + alone + float(((point / SPREAD) ** 2).sum()) / 2

    best = temperature_at(minimize(objective, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-5}).x)
    count = len(pooled.ids)
    log.info(
        "%s, on %d patients: loss %.4f -> %.4f",
        *(best.words(int(np.median(pooled.slices))), count, loss(Temperature()) / count, loss(best) / count),
    )
    return best


def _logs(probabilities: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(probabilities.clip(SMALLEST_PROBABILITY))
    return logs


def _nats(scaled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each row, [rows], of its scaled logarithms [rows, classes]."""
    nats: np.ndarray = -log_softmax(scaled, axis=1)[np.arange(len(labels)), labels]
    return nats
