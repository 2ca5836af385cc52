"""Temperature scaling: one number that makes probabilities mean what they say (Guo et al. 2017)."""

from __future__ import annotations

import logging

import numpy as np
from scipy.optimize import minimize_scalar

from raymed.errors import UserError
from raymed.evaluation.patients import softmax
from raymed.evaluation.resampling import losses

FEWEST = 20  # patients; with fewer the fitted temperature follows chance more than the model
BOUNDS = (0.05, 20.0)

log = logging.getLogger("raymed")


def fit_temperature(logits: np.ndarray, patients: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least patient-level negative log likelihood of the mean of the slices' softmax(logits / T).

    It is 1, and a log line says why, when there are fewer than twenty patients, when no other temperature is better, or when
    the loss has no minimum within reach (as when every patient is right).

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

    if len(ids) < FEWEST:
        log.warning("temperature left at 1: %d patients are too few to fit it (at least %d)", len(ids), FEWEST)
        return 1.0
    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-4})
    temperature, before = float(np.exp(found.x)), loss(0.0)
    if found.fun >= before:
        log.info("temperature left at 1: no other one lowers the loss of %.4f on %d patients", before, len(ids))
        return 1.0
    if min(loss(bound) for bound in np.log(BOUNDS)) < found.fun + 1e-6:
        log.warning("temperature left at 1: on %d patients the loss has no minimum in %s", len(ids), BOUNDS)
        return 1.0
    log.info("temperature %.3f on %d patients: loss %.4f -> %.4f", temperature, len(ids), before, found.fun)
    return temperature
