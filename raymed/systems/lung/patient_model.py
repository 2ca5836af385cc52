"""Attention over a patient's slices beside their mean: learned on some patients, both judged on others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from safetensors.torch import save

from raymed.evaluation.calibration import fit_temperature
from raymed.evaluation.patients import Patients
from raymed.evaluation.scores import SMALLEST_PROBABILITY
from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder
from raymed.systems.lung.attention_pooling import Bags, SliceAttention, decide, fit
from raymed.systems.lung.choices import Choice, choice, heading
from raymed.systems.lung.settings import HeadSettings
from raymed.systems.lung.slice_features import SliceFeatures

HEAD, WEIGHTS = "head.safetensors", "slices.csv"


@dataclass(frozen=True, eq=False)
class PatientModel:
    """A head that weighs slices, and what it is worth on patients that it was not trained on.

    Attributes:
        head: the network.
        mean: what the mean of their slices decides; likewise `attention`, compared with it patient by patient.
        patients: the judged ones' decisions by attention.
        slices: index columns of their slices.
        weights: what each slice weighs, [slices]; those of a patient add up to 1.
    """

    head: SliceAttention
    mean: Choice
    attention: Choice
    patients: Patients
    slices: dict[str, np.ndarray]
    weights: np.ndarray

    @classmethod
    def of(
        cls, train: SliceFeatures, judged: SliceFeatures, settings: HeadSettings, bootstrap: int = 1000, seed: int = 0
    ) -> PatientModel:
        """
        Args:
            train: of the patients that the head learns from.
            judged: of others; the temperatures of both ways are fitted on them.
        """
        head, bags, columns = fit(Bags.of(train), settings, seed), Bags.of(judged), judged.columns
        probabilities, weights = decide(head, bags)
        logs = np.log(probabilities.clip(SMALLEST_PROBABILITY))
        usual = fit_temperature(judged.logits, columns["patient"], columns["label"])
        by_mean = usual.pool(judged.logits, columns)
        own = fit_temperature(logs, bags.ids, bags.labels)
        by_attention = own.pool(logs, {"patient": bags.ids, "label": bags.labels, "source": by_mean.sources})
        slices = int(np.median(by_mean.slices))
        mean = choice(slices, "mean", usual, by_mean, None, bootstrap, seed)
        attention = choice(slices, "attention", own, by_attention, by_mean, bootstrap, seed)
        return cls(head, mean, attention, by_attention, columns, weights)

    @property
    def counting(self) -> float:
        """How many slices of a patient count, on average: one over the sum of their squared weights."""
        owner = np.unique(self.slices["patient"].astype(str), return_inverse=True)[1]
        return float((1 / np.bincount(owner, weights=self.weights**2)).mean())

    def lines(self) -> list[str]:
        """For a terminal."""
        return [
            heading(),
            str(self.mean),
            str(self.attention),
            f"{self.counting:.1f} of a patient's {len(self.weights) / len(self.patients.ids):.1f} slices count by attention "
            "(one over the sum of squared weights)",
            "each way with its own temperature, fitted on these patients",
            self.verdict,
        ]

    @property
    def verdict(self) -> str:
        """Which of the two is better on these patients, as far as they tell."""
        more = self.attention.more_loss
        if more is None or more.low is None or more.high is None or more.low <= 0 <= more.high:
            return "these patients cannot tell the two apart: keep the mean"
        better = "attention" if more.high < 0 else "the mean"
        return f"{better} has surely the lower loss on patients such as these"

    def write(self, folder: Folder) -> str:
        """The head's weights, and what each slice of the judged patients weighs, as CSV; returns where."""
        folder.write(HEAD, save({name: value.contiguous() for name, value in self.head.state_dict().items()}))
        table = pd.DataFrame({name: self.slices[name] for name in ("patient", "study", "position", "id")})
        folder.write(WEIGHTS, to_csv(table.assign(weight=self.weights)))
        return f"the head, and what each slice weighs: {folder.uri}/{HEAD} and {WEIGHTS}"
