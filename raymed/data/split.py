"""Who is in train, val and test, and in which fold: by patient, stratified by label, stable when patients are added."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymed.errors import UserError

SPLITS = ("train", "val", "test")

Assignment = tuple[str, int | None]  # split, and the fold of a train or val patient
Label = int | str  # a class, by its index or its name
Part = TypeVar("Part", str, int)  # a split or a fold


@dataclass(frozen=True)
class SplitSettings:
    """How patients are divided.

    Attributes:
        weights: shares of train/val/test; they are normalised, so 75/15/15 gives 71.4 %, 14.3 % and 14.3 % of each class.
            0 leaves a split empty.
        folds: cross-validation folds over the train and val patients; 0 for none.
        file: a CSV with the columns patient_id and split (train, val or test); it settles the splits instead of weights.
    """

    weights: str = "75/15/15"
    folds: int = 5
    file: str | None = None

    def shares(self) -> dict[str, Fraction]:
        """The splits of weight above 0 and their shares, which sum to 1.

        Raises:
            UserError: not three numbers from 0 up with at least one above 0, or a number of folds that cannot be.
        """
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"split.folds is {self.folds}: give 0 for none, or 2 and more")
        try:
            weights = [Fraction(part.strip()) for part in self.weights.split("/")]
        except (ValueError, ZeroDivisionError):
            weights = []
        if len(weights) != 3 or min(weights) < 0 or sum(weights) == 0:
            raise UserError(f"split.weights is {self.weights!r}: give train/val/test as three numbers, for example 75/15/15")
        return {split: weight / sum(weights) for split, weight in zip(SPLITS, weights, strict=True) if weight > 0}


def assign(
    patients: Sequence[str],
    labels: Sequence[Label],
    groups: Sequence[str],
    settings: SplitSettings,
    seed: int = 0,
    existing: Mapping[str, Assignment] | None = None,
    settled: bool = False,
) -> dict[str, Assignment]:
    """Give every patient a split and a fold.

    Each class is divided by the largest remainder, at least one patient per split; patients of one group stay together;
    patients in `existing` stay where they are. The order of the arguments does not matter.

    Args:
        patients: distinct patient ids.
        labels: class of each patient, as an index or a name (errors say it as it is given).
        groups: near-duplicate group of each patient (its own id where it stands alone).
        settings: weights and folds.
        seed: which of the possible divisions is taken.
        existing: earlier assignments; patients that are not in `patients` are ignored. A fold of None is filled in.
        settled: a person divided the patients: each class may be where it is.

    Raises:
        UserError: a class has too few patients, or earlier assignments tear a group apart.
    """
    shares = settings.shares()
    known = existing or {}
    label_of = dict(zip(patients, labels, strict=True))
    if not settled:
        _require_enough(label_of, shares)
    units = _units(patients, groups, seed)
    fixed = {patient: known[patient][0] for patient in patients if patient in known}
    split_of = _divide(units, label_of, shares, fixed)
    if not settled:
        _require_present(split_of, label_of, shares)

    folds: dict[str, int] = {}
    if settings.folds:
        rest = [[p for p in unit if split_of[p] != "test"] for unit in units]
        fold_shares = {fold: Fraction(1, settings.folds) for fold in range(settings.folds)}
        kept = {p: fold for p in split_of if p in known and (fold := known[p][1]) is not None and fold < settings.folds}
        folds = _divide([unit for unit in rest if unit], label_of, fold_shares, kept)
    return {patient: (split_of[patient], folds.get(patient)) for patient in patients}


def split_of_rows(index: pa.Table, fold: int | None = None) -> np.ndarray:
    """The split of each index row, int8: its place in `SPLITS`, or -1 for a row that is in none.

    Args:
        index: rows in the schema INDEX.
        fold: None for the stored splits; k to take fold k as val and the other train and val rows as train.

    Raises:
        UserError: there is no such fold.
    """
    found = pc.index_in(index["split"], value_set=pa.array(SPLITS))
    split = pc.fill_null(found, -1).to_numpy().astype(np.int8)
    if fold is None:
        return split
    folds = pc.fill_null(index["fold"], -1).to_numpy()
    if not 0 <= fold <= folds.max(initial=-1):
        raise UserError(f"there is no fold {fold}: the data have {folds.max(initial=-1) + 1} folds, counted from 0")
    inside = np.isin(split, (SPLITS.index("train"), SPLITS.index("val")))
    moved = np.where(folds == fold, SPLITS.index("val"), SPLITS.index("train")).astype(np.int8)
    return np.where(inside, moved, split)


def read_split_file(
    path: str | Path, patients: Iterable[str], known_as: Callable[[str], str] = str
) -> dict[str, Assignment]:
    """The splits that a CSV gives to `patients`; lines about other patients are not used.

    Args:
        known_as: from a patient id in the file to the one in `patients`.

    Raises:
        UserError: the file cannot be read, lacks a column, names an unknown split, contradicts itself, or misses a patient.
    """
    from raymed.data.sources.table import read_cells  # sources know the splits that a source states

    given: dict[str, Assignment] = {}
    if not Path(path).is_file():
        raise UserError(f"the split file {path} is no regular file: give a CSV with the columns patient_id and split")
    columns = {"patient_id": ["patient_id"], "split": ["split"]}
    for line, cells in read_cells(Path(path), columns, columns, {}, dict.fromkeys(columns, "; a split file needs both")):
        patient, split = cells["patient_id"], cells["split"]
        if split not in SPLITS:
            raise UserError(f"{path}:{line}: split {split!r} of patient {patient!r} is not train, val or test")
        if given.setdefault(patient, (split, None)) != (split, None):
            raise UserError(f"{path}:{line}: patient {patient!r} is in {given[patient][0]} and in {split}")
    given = {known_as(patient): assignment for patient, assignment in given.items()}
    wanted = set(patients)
    lost = sorted(wanted - given.keys())
    if lost:
        raise UserError(f"{path}: no line for {len(lost)} patients, for example {', '.join(lost[:10])}")
    return {patient: given[patient] for patient in wanted}


def _units(patients: Sequence[str], groups: Sequence[str], seed: int) -> list[list[str]]:
    """Patients that stay together: the largest units first, otherwise in an order drawn from the seed."""

    def draw(patient: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{patient}".encode(), digest_size=16).digest()

    members: dict[str, list[str]] = defaultdict(list)
    for patient, group in zip(patients, groups, strict=True):
        members[group].append(patient)
    units = [sorted(unit, key=draw) for unit in members.values()]
    return sorted(units, key=lambda unit: (-len(unit), draw(unit[0])))


def _divide(
    units: list[list[str]], label_of: Mapping[str, Label], shares: Mapping[Part, Fraction], fixed: Mapping[str, Part]
) -> dict[str, Part]:
    """Put each unit where its classes are furthest below their targets."""
    sizes = Counter(label_of[patient] for unit in units for patient in unit)
    missing = {label: _targets(size, shares) for label, size in sizes.items()}  # below zero where a part is over-full
    placed: dict[str, Part] = {}
    free: list[list[str]] = []
    for unit in units:
        parts = {fixed[patient] for patient in unit if patient in fixed}
        if len(parts) > 1:
            raise UserError(_torn(unit, fixed))
        if parts:
            _place(unit, parts.pop(), placed, missing, label_of)
        else:
            free.append(unit)
    for unit in free:
        part = max(shares, key=lambda part: sum(missing[label_of[patient]][part] for patient in unit))
        _place(unit, part, placed, missing, label_of)
    return placed


def _place(
    unit: list[str],
    part: Part,
    placed: dict[str, Part],
    missing: dict[Label, dict[Part, int]],
    label_of: Mapping[str, Label],
) -> None:
    for patient in unit:
        placed[patient] = part
        missing[label_of[patient]][part] = missing[label_of[patient]].get(part, 0) - 1


def _targets(size: int, shares: Mapping[Part, Fraction]) -> dict[Part, int]:
    """Largest remainder, then at least one for each part as far as `size` goes; ties go to the earlier part."""
    exact = {part: size * share for part, share in shares.items()}
    counts = {part: int(value) for part, value in exact.items()}
    for part in sorted(exact, key=lambda part: counts[part] - exact[part])[: size - sum(counts.values())]:
        counts[part] += 1
    if size >= len(counts):
        for part in counts:
            if counts[part] == 0:
                counts[max(counts, key=lambda other: counts[other])] -= 1
                counts[part] = 1
    return counts


def _require_enough(label_of: Mapping[str, Label], shares: Mapping[str, Fraction]) -> None:
    sizes = Counter(label_of.values())
    short = {label: size for label, size in sizes.items() if size < len(shares)}
    if short:
        named = ", ".join(f"class {label}: {size}" for label, size in sorted(short.items(), key=str))
        raise UserError(
            f"too few patients for {len(shares)} splits ({'/'.join(shares)}), one each is needed: "
            f"{named}. Add patients, put the label on the label table's ignore list, or, {_trial(sizes)}"
        )


def _trial(sizes: Mapping[Label, int]) -> str:
    """What lets so few patients through, though it proves nothing."""
    if min(sizes.values()) > 1:
        return "for a trial without a test split, pass --split.weights 75/25/0 --split.folds 0"
    return "to predict or judge them only, pass --split.weights 0/0/100 --split.folds 0"


def _require_present(split_of: Mapping[str, str], label_of: Mapping[str, Label], shares: Mapping[str, Fraction]) -> None:
    seen = {(label_of[patient], split) for patient, split in split_of.items()}
    lacking = [
        f"class {label} in {split}"
        for label in sorted(set(label_of.values()), key=str)
        for split in shares
        if (label, split) not in seen
    ]
    if lacking:
        raise UserError(
            f"no patient is left for {', '.join(lacking)}: near-duplicate pictures, or earlier assignments, "
            "keep them in other splits. Look at the near-duplicates that were found, add patients, or start "
            "in an empty folder"
        )


def _torn(unit: list[str], fixed: Mapping[str, Part]) -> str:
    named = ", ".join(f"{patient} ({fixed[patient]})" for patient in sorted(unit) if patient in fixed)
    return (
        f"patients with near-duplicate pictures stand in different splits or folds: {named}. "
        "Put them in one split, prepare into an empty folder, or use near_duplicates=warn"
    )
