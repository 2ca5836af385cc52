"""Whom other runs were validated on: where that chose settings, later figures of the same patients flatter."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.registry.candidate import CHECKPOINT, DATA, DATA_DIGEST, FOLD, FOLDS, TRAINED
from raymed.tracking.tracker import Tracker


@dataclass(frozen=True)
class OtherRuns:
    """Runs beside one's own that were validated on some of its patients, as far as the tracking server knows.

    Attributes:
        count: how many runs.
        patients: ids of the patients that they were validated on.
    """

    count: int
    patients: frozenset[str]

    @classmethod
    def of(cls, tracker: Tracker, prepared: Prepared, patients: Iterable[str], own: Collection[str]) -> OtherRuns:
        """Those of the same source, however it was prepared and divided; data that are gone tell nobody.

        Args:
            patients: ids of the patients that are judged.
            own: ids of the runs that judge them.
        """
        judged, count, validated = frozenset(patients), 0, frozenset[str]()
        known: dict[tuple[str, str, str], frozenset[str]] = {}
        for run in tracker.tagged(CHECKPOINT):  # which a run has after a validation
            if {FOLDS, TRAINED} & run.tags.keys():
                continue  # the mean of folds was validated by its folds alone, whose runs count; what was imported, never
            if run.id in own or not {DATA, FOLD, DATA_DIGEST} <= run.tags.keys():
                continue
            address, digest, fold = run.tags[DATA], run.tags[DATA_DIGEST], run.tags[FOLD]
            if (address, digest, fold) not in known:
                known[address, digest, fold] = judged & _validated_on(prepared, address, digest, fold)
            if same := known[address, digest, fold]:
                count, validated = count + 1, validated | same
        return cls(count, validated)


def _validated_on(prepared: Prepared, address: str, digest: str, fold: str) -> frozenset[str]:
    """Patients on whom a run was validated; nobody where its data are of another source, or gone."""
    try:
        other = prepared if digest == prepared.digest else Prepared.open(address, digest)
    except (UserError, RunError, OSError):
        return frozenset()
    if other.manifest.source != prepared.manifest.source:
        return frozenset()
    rows = other.rows("val", int(fold) if fold else None)
    return frozenset(map(str, other.columns(rows, ["patient"])["patient"]))
