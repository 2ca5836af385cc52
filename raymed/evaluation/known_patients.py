"""Whom a model knows already: the patients it was trained on and those who chose it, as digests that travel with it.

A digest is keyed with that of the data and cut to 40 bits: enough to count how many patients of a group a model knows, and
no way to read an id. Whoever has the model and guesses an id can ask whether it was among them; pseudonymised data leave
nothing to guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class KnownPatients:
    """Digests of patients.

    Attributes:
        key: that they were made with.
        trained: of patients that the network was trained on.
        chosen: of patients that chose it: its epoch, its settings, its temperature.
    """

    key: str
    trained: frozenset[str]
    chosen: frozenset[str]

    @classmethod
    def of(cls, key: str, trained: Iterable[str], chosen: Iterable[str]) -> KnownPatients:
        """Args: trained, chosen: patient ids; repeats count once."""
        return cls(key, *(frozenset(_digest(key, patient) for patient in set(ids)) for ids in (trained, chosen)))

    def notes(self, patients: np.ndarray, unit: str = "patient") -> list[str]:
        """How many of these patients (ids, repeats count once) the model knows, in words; none where it knows nobody.

        Args: unit: see `Patients`.
        """
        digests = {_digest(self.key, str(patient)) for patient in np.unique(patients.astype(str))}
        trained, chosen = digests & self.trained, digests & self.chosen - self.trained
        notes = []
        if trained:
            notes.append(f"the model was trained on {len(trained)} of these {len(digests)} {unit}s: the figures flatter it")
        if chosen:
            notes.append(f"{len(chosen)} of these {len(digests)} {unit}s chose the model: the figures flatter it")
        return notes

    def to_dict(self) -> dict[str, Any]:
        return {"key": self.key, "trained": sorted(self.trained), "chosen": sorted(self.chosen)}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> KnownPatients:
        return cls(values["key"], frozenset(values["trained"]), frozenset(values["chosen"]))


def _digest(key: str, patient: str) -> str:
    return hashlib.blake2b(patient.encode(), digest_size=5, key=key.encode()[:64]).hexdigest()
