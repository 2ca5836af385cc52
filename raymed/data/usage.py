"""Who and what of prepared data is really used: a limit and the choice of slices leave less than there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raymed.data.prepared import Prepared
from raymed.data.split import SPLITS
from raymed.data.survey import class_name

Counts = Mapping[str, Mapping[str, int]]
"""By class and split."""


@dataclass(frozen=True)
class Usage:
    """What a run uses of each split.

    Attributes:
        patients: patients that are used.
        records: records (slices) of theirs that are used.
        there: patients that there are.
        unit: what they are called, see `Manifest`.
    """

    patients: Counts
    records: Counts
    there: Counts
    unit: str = "patient"

    @classmethod
    def of(cls, prepared: Prepared, used: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> Usage:
        """Count what is used.

        Args:
            used: the rows that are used of each split.
            rows: all that there are of it.
        """
        patients, records = _counted(prepared, used)
        there, _ = _counted(prepared, rows)
        return cls(patients, records, there, prepared.manifest.unit)

    def total(self, split: str) -> tuple[int, int, int]:
        """Patients used, records used, and patients there, of all classes."""
        patients, records, there = (
            sum(counts.get(split, 0) for counts in each.values()) for each in (self.patients, self.records, self.there)
        )
        return patients, records, there

    @property
    def splits(self) -> list[str]:
        """Those that have patients, in their order."""
        return [split for split in SPLITS if self.total(split)[2]]

    @property
    def leaves_patients_out(self) -> bool:
        return any(self.total(split)[0] < self.total(split)[2] for split in self.splits)

    def flat(self) -> dict[str, dict[str, int]]:
        """Patients and records of each split, for a store of parameters."""
        totals = {split: self.total(split) for split in self.splits}
        return {split: {"patients": patients, "records": records} for split, (patients, records, _) in totals.items()}

    def __str__(self) -> str:
        return ", ".join(
            f"{split} {_of(patients, there)} {self.unit}s ({records} records)"
            for split in self.splits
            for patients, records, there in [self.total(split)]
        )

    def table(self) -> list[list[str]]:
        """A line for each class: its name, and patients and records of each split in words."""
        return [
            [name]
            + [
                f"{_of(self.patients.get(name, {}).get(split, 0), counts.get(split, 0))} "
                f"({self.records.get(name, {}).get(split, 0)})"
                for split in self.splits
            ]
            for name, counts in self.there.items()
        ]


def _of(used: int, there: int) -> str:
    return str(used) if used == there else f"{used} of {there}"


def _counted(prepared: Prepared, rows: Mapping[str, np.ndarray]) -> tuple[Counts, Counts]:
    """Patients and records by class and split."""
    patients: dict[str, dict[str, int]] = {}
    records: dict[str, dict[str, int]] = {}
    for split, chosen in rows.items():
        columns = prepared.index.select(["label", "patient"]).take(pa.array(chosen, pa.int64()))
        groups = columns.group_by("label").aggregate([("patient", "count_distinct"), ("patient", "count")]).sort_by("label")
        for label, distinct, count in zip(*(groups[name].to_pylist() for name in groups.column_names), strict=True):
            name = class_name(prepared.labels, label)
            patients.setdefault(name, {})[split] = distinct
            records.setdefault(name, {})[split] = count
    return patients, records
