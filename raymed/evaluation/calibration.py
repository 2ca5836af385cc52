"""Temperature scaling: one number that makes probabilities mean what they say (Guo et al. 2017).

It is fitted with a weak prior for leaving the model alone: log T is normal around 0, a factor of two being one standard
deviation. On hundreds of patients the prior is not felt; on a few, or where every patient is right and the likelihood alone
would ask for certainty, it keeps the temperature sober.
"""

from __future__ import annotations

import logging

import numpy as np
from scipy.optimize import minimize_scalar

from raymed.errors import UserError
from raymed.evaluation.patients import softmax
from raymed.evaluation.scores import losses

SPREAD = np.log(2)  # of log T, under the prior
BOUNDS = (0.05, 20.0)

log = logging.getLogger("raymed")


def fit_temperature(logits: np.ndarray, patients: np.ndarray, labels: np.ndarray) -> float:
    """The most probable temperature (maximum a posteriori), given the patients' labels.

    A patient's probabilities are the mean of its slices' softmax(logits / T).

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
    ids, owner, slices = np.unique(np.asarray(patients, dtype=object), return_inverse=True, return_counts=True)
    only = np.zeros(len(ids), np.int64)  # the one column below

    def loss(log_temperature: float) -> float:
        own = softmax(logits, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        means = np.bincount(owner, weights=own) / slices
        return float(losses(only, means[:, None]).mean())

    def objective(log_temperature: float) -> float:
        return loss(log_temperature) * len(ids) + (log_temperature / SPREAD) ** 2 / 2

    found = minimize_scalar(objective, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-4})
    log.info("temperature %.3f on %d patients: loss %.4f -> %.4f", np.exp(found.x), len(ids), loss(0.0), loss(found.x))
    return float(np.exp(found.x))
