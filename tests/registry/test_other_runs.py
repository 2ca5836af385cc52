"""Patients on whom other runs were validated are known, however the same source was prepared, and nobody else is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import write_prepared

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.registry.candidate import FOLDS, TRAINED, Candidate
from raymed.registry.other_runs import OtherRuns
from raymed.tracking.tracker import Tracker


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker.open(f"sqlite:///{tmp_path}/mlflow.db", "made")


def validated(tracker: Tracker, prepared: Prepared, name: str, fold: int | None, data: str = "") -> str:
    """A run that left a checkpoint after a validation."""
    run = tracker.run(name, name)
    address = data or prepared.folder.uri
    tracker.tags(run, Candidate(run, "checkpoint", address, fold, SliceSettings(), 0, prepared.digest).tags())
    return run


def patients(prepared: Prepared, split: str, fold: int | None = None) -> set[str]:
    return set(map(str, prepared.columns(prepared.rows(split, fold), ["patient"])["patient"]))


def test_only_patients_on_whom_another_run_was_validated_may_have_chosen_settings(
    prepared: Prepared, tracker: Tracker
) -> None:
    everybody = patients(prepared, "train") | patients(prepared, "val")
    own = validated(tracker, prepared, "own", 0)
    tracker.run("never validated", "never validated")
    assert OtherRuns.of(tracker, prepared, everybody, {own}) == OtherRuns(0, frozenset())
    mean, imported = (validated(tracker, prepared, name, None) for name in ("mean of folds", "imported"))
    tracker.tags(mean, {FOLDS: "3"})
    tracker.tags(imported, {TRAINED: "elsewhere"})
    assert OtherRuns.of(tracker, prepared, everybody, {own}).count == 0, "they were validated nowhere"
    validated(tracker, prepared, "search", None)
    assert OtherRuns.of(tracker, prepared, everybody, {own}) == OtherRuns(1, frozenset(patients(prepared, "val")))
    validated(tracker, prepared, "fold", 1)
    both = patients(prepared, "val") | patients(prepared, "val", 1)
    assert OtherRuns.of(tracker, prepared, everybody, {own}) == OtherRuns(2, frozenset(both))


def test_the_same_source_divided_in_another_way_is_known_and_another_source_is_not(
    prepared: Prepared, tracker: Tracker, tmp_path: Path
) -> None:
    again = write_prepared(tmp_path / "again", slices=1)
    assert again.digest != prepared.digest and again.manifest.source == prepared.manifest.source
    run = validated(tracker, again, "search of the same source", None)
    judged = patients(prepared, "train") | patients(prepared, "val")
    assert OtherRuns.of(tracker, prepared, judged, ()) == OtherRuns(1, frozenset(patients(again, "val") & judged))
    assert OtherRuns.of(tracker, prepared, judged, {run}).count == 0
    manifest = (tmp_path / "again" / "manifest.json").read_bytes()
    (tmp_path / "again" / "manifest.json").write_bytes(manifest.replace(b'"made"', b'"elsewhere"'))
    assert OtherRuns.of(tracker, prepared, judged, ()).count == 0, "other people may be called alike there"
    shutil.rmtree(tmp_path / "again")
    assert OtherRuns.of(tracker, prepared, judged, ()).count == 0, "nobody knows who they were"
