"""What a temperature is worth to patients of few and many slices, where it was fitted on patients of sixteen.

python benchmarks/slices.py

Four classes; each slice alone is perfectly calibrated, and the slices of a patient err together. Log loss of new patients,
unscaled, with one number that each slice's logits are divided by, and with `raymed.evaluation.calibration.Temperature`.
"""

from __future__ import annotations

import numpy as np
from jsonargparse import auto_cli
from scipy.optimize import minimize_scalar

from raymed.evaluation.calibration import SPREAD, Temperature, fit_temperature
from raymed.evaluation.patients import softmax
from raymed.evaluation.scores import losses

CORRELATIONS, SLICES, SEEN = (0.2, 0.5, 0.9), (1, 2, 4, 16, 64), 16


def main(draws: int = 5, patients: int = 200, judged: int = 4000) -> None:
    """Print a table of log loss by correlation and number of slices.

    Args:
        draws: temperatures that are fitted.
        patients: that each is fitted on.
        judged: new patients.
    """
    print(f"{'correlation':>12}{'slices':>8}{'unscaled':>10}{'one number':>12}{'by slices':>11}")
    for correlation in CORRELATIONS:
        costs = np.zeros((draws, len(SLICES), 3))
        for draw in range(draws):
            generator = np.random.default_rng(draw)
            seen, new = (
                logits_of(count, most, correlation, generator) for count, most in ((patients, SEEN), (judged, max(SLICES)))
            )
            owners = np.repeat(np.arange(patients).astype(str), SEEN)
            fitted = fit_temperature(seen[1].reshape(-1, 4), owners, np.repeat(seen[0], SEEN))
            ways = Temperature(), Temperature(logits=one_number(*seen)), fitted
            for place, slices in enumerate(SLICES):
                costs[draw, place] = [cost(new[0], new[1][:, :slices], way) for way in ways]
        for slices, row in zip(SLICES, costs.mean(axis=0), strict=True):
            print(f"{correlation:>12}{slices:>8}{row[0]:>10.3f}{row[1]:>12.3f}{row[2]:>11.3f}", flush=True)


def logits_of(
    patients: int, slices: int, correlation: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, [patients], and logits, [patients, slices, 4]."""
    labels = generator.integers(4, size=patients)
    shared = generator.normal(size=(patients, 1, 4)) * correlation**0.5
    return labels, np.eye(4)[labels][:, None] + shared + generator.normal(size=(patients, slices, 4)) * (
        1 - correlation
    ) ** 0.5


def one_number(labels: np.ndarray, logits: np.ndarray) -> float:
    """The most probable divisor of all logits, under the prior that `fit_temperature` has for one slice."""

    def objective(log: float) -> float:
        return cost(labels, logits, Temperature(logits=float(np.exp(log)))) * len(labels) + (log / SPREAD) ** 2 / 2

    return float(np.exp(minimize_scalar(objective, bounds=(-3.0, 3.0), method="bounded").x))


def cost(labels: np.ndarray, logits: np.ndarray, temperature: Temperature) -> float:
    """Mean log loss of patients."""
    pooled = softmax(logits.reshape(-1, 4), temperature.logits).reshape(logits.shape).mean(axis=1)
    return float(losses(labels, temperature.scale(pooled, np.full(len(labels), logits.shape[1]))).mean())


if __name__ == "__main__":
    auto_cli(main)
