"""The leak guard: the proof that train, val and test share nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymed.data.record import input_pictures
from raymed.data.split import SPLITS, split_of_rows
from raymed.errors import UserError
from raymed.language import say

NAMED = 10


@dataclass(frozen=True)
class GuardSummary:
    """What the guard proved, counted per split: nothing below is in two of them.

    Attributes:
        patients_known: False where every picture counts as a patient of its own, for want of something better.
        joint: groups of several patients, who share near-duplicate pictures; none where these were not to be kept together.
    """

    fold: int | None
    patients: dict[str, int]
    studies: dict[str, int]
    joint: int
    records: dict[str, int]
    patients_known: bool = True

    def __str__(self) -> str:
        where = say("stored splits") if self.fold is None else say("fold {fold}", fold=self.fold)
        unit = say("patients") if self.patients_known else say("images")
        counts = ", ".join(
            say(
                "{split} {patients} {unit} / {records} records",
                split=say(split),
                patients=self.patients[split],
                unit=unit,
                records=self.records[split],
            )
            for split in SPLITS
        )
        joint = ""
        if self.joint:
            joint = say(", nor is any of {joint} groups of patients with near-duplicate pictures", joint=self.joint)
        if not self.patients_known:
            return say(
                "leak guard ({where}): no image is in two splits; whether a patient is, nobody knows, for nobody said whose "
                "they are; {counts}",
                where=where,
                counts=counts,
            )
        return say(
            "leak guard ({where}): no patient, study or picture is in two splits{joint}; {counts}",
            where=where,
            joint=joint,
            counts=counts,
        )


def guard(index: pa.Table, fold: int | None = None, patients_known: bool = True) -> GuardSummary:
    """Prove that train, val and test share no patient, study, near-duplicate group or picture.

    Flat pictures (an all-black slice beyond the body) are alike without being copies; they are not compared.

    Args:
        index: rows in the schema INDEX.
        fold: None for the stored splits, or the fold that is validated on.
        patients_known: as in the manifest.

    Raises:
        UserError: something is in two splits; the message names it and its patients.
    """
    split = split_of_rows(index, fold)
    inside = split >= 0
    counts: dict[str, dict[str, int]] = {}
    for key, words in (
        ("patient", "the patient"),
        ("study", "the study"),
        ("group", "the near-duplicate group"),
        ("digest", "identical pixels"),
    ):
        lines = input_pictures(index) if key == "digest" else index
        row = lines["row"].to_numpy() if key == "digest" else np.arange(index.num_rows)
        compared = inside[row] & pc.is_valid(lines["hash"]).to_numpy() if key == "digest" else inside
        codes = pc.dictionary_encode(lines[key]).combine_chunks().indices.to_numpy(zero_copy_only=False)
        codes, places = codes[compared], split[row[compared]]
        seen = np.zeros((int(codes.max(initial=-1)) + 1, len(SPLITS)), dtype=bool)
        seen[codes, places] = True
        if (leaks := np.flatnonzero(seen.sum(axis=1) > 1)).size:
            rows = row[compared][np.isin(codes, leaks)]
            raise UserError(_leak(index, rows, split, words))
        counts[key] = dict(zip(SPLITS, seen.sum(axis=0).tolist(), strict=True))
    records = dict(zip(SPLITS, np.bincount(split[inside], minlength=len(SPLITS)).tolist(), strict=True))
    patients = index.filter(pa.array(inside)).group_by(["group", "patient"]).aggregate([]).group_by("group")
    joint = pc.sum(pc.greater(patients.aggregate([("patient", "count")])["patient_count"], 1)).as_py() or 0
    return GuardSummary(fold, counts["patient"], counts["study"], joint, records, patients_known)


def _leak(index: pa.Table, rows: np.ndarray, split: np.ndarray, words: str) -> str:
    patients = np.asarray(index["patient"].take(pa.array(rows)).to_pylist(), dtype=object)
    named = {f"{patient} ({SPLITS[split[row]]})": None for patient, row in zip(patients, rows, strict=True)}
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return (
        f"leak: {words} is in more than one split: {', '.join(list(named)[:NAMED])}{more}. "
        "Correct the patient ids of the source, or prepare the data again into an empty folder"
    )
