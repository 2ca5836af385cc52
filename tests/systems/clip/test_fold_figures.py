"""A cross-validation says what was chosen on the patients that it is judged on, and shows what was not beside it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raymed.data.prepared import Prepared
from raymed.evaluation.intervals import over_folds
from raymed.evaluation.scores import overall
from raymed.registry.other_runs import OtherRuns
from raymed.storage.folder import Folder
from raymed.systems.clip.judged import Judged
from raymed.systems.clip.summary import _lines
from raymed.training.checkpoint import PREDICTIONS, new_name, seal
from raymed.training.predictions import last_predictions


def checkpoint(run: Path, step: int, rows: np.ndarray, logits: np.ndarray | None) -> Path:
    folder = run / new_name(step, step)
    folder.mkdir(parents=True)
    if logits is not None:
        np.savez(folder / PREDICTIONS, row=rows, logits=logits)
    seal(folder, 0, 1)
    return folder


@pytest.fixture
def judged(prepared: Prepared, tmp_path: Path) -> Judged:
    """Three folds that were right in their best epoch and hardly in the last; one of them was told to leave after that."""
    best, runs = [], []
    for fold in range(prepared.folds):
        rows, run = prepared.rows("val", fold), tmp_path / str(fold)
        right = 5 * np.eye(4, dtype=np.float32)[prepared.columns(rows, ["label"])["label"]]
        best.append(str(checkpoint(run, 1, rows, right)))
        checkpoint(run, 2, rows, np.random.default_rng(fold).normal(size=right.shape).astype(np.float32))
        runs.append(Folder.at(str(run)))
    checkpoint(tmp_path / "0", 3, rows, None)
    return Judged.of(prepared, best, 0, runs)


NOBODY = OtherRuns(0, frozenset())


def told(prepared: Prepared, judged: Judged, patience: int, others: OtherRuns = NOBODY) -> str:
    """What a person is told of the folds."""
    averages = {f"{kind}_{name}": 1.0 for kind in ("avg", "std") for name in ("best_val_acc", "val_acc", "val_loss")}
    options = SimpleNamespace(use_cv=True, train=SimpleNamespace(patience=patience))
    configuration = SimpleNamespace(name="", options=options, prepared=prepared)
    found = {"average_results": averages, "runs": {f"fold_{fold}": "COMPLETE" for fold in range(prepared.folds)}}
    return "\n".join(_lines(configuration, found, judged, others, brief=True))  # type: ignore[arg-type]


def test_the_last_epoch_of_each_fold_stands_beside_the_one_that_the_fold_chose(prepared: Prepared, judged: Judged) -> None:
    assert judged.folds["accuracy"] == [1.0] * prepared.folds
    assert np.mean(judged.last["accuracy"]) < 0.8
    text = told(prepared, judged, 0)
    assert f"in the last epoch, which nothing chose: accuracy {over_folds(judged.last['accuracy'])}" in text
    assert f"in the epoch that its fold chose, which flatters: accuracy {over_folds(judged.folds['accuracy'])}" in text


def test_a_last_epoch_at_which_early_stopping_ended_is_not_said_to_be_chosen_by_nothing(
    prepared: Prepared, judged: Judged
) -> None:
    text = told(prepared, judged, 3)
    assert "where early stopping ended it" in text and "which nothing chose" not in text


def test_patients_on_whom_other_runs_were_validated_are_told_from_those_who_chose_no_setting(
    prepared: Prepared, judged: Judged
) -> None:
    flatter = "where they chose these settings, figures of those patients flatter"
    chose_nothing = "on whom no other run was validated"
    assert flatter not in told(prepared, judged, 0) and chose_nothing not in told(prepared, judged, 0)

    ids = judged.patients.ids.astype(str)
    some = frozenset(ids[: len(ids) // 4])
    text = told(prepared, judged, 0, OtherRuns(12, some))
    assert f"12 other runs were validated on {len(some)} of these {len(ids)} patients: {flatter}" in text
    last = judged.last_patients
    assert last is not None
    rest = last.part(~np.isin(ids, list(some)))
    accuracy = overall(rest.labels, rest.probabilities)["accuracy"]
    line = next(line for line in text.splitlines() if chose_nothing in line)
    assert f"the other {len(rest.ids)} patients" in line and "in the last epoch, which nothing chose" in line
    assert f"accuracy {accuracy:.3f} [" in line

    text = told(prepared, judged, 0, OtherRuns(1, frozenset(ids)))
    assert f"1 other run was validated on {len(ids)} of these {len(ids)} patients: {flatter}" in text
    assert chose_nothing not in text, "nobody is left"
    assert "which nothing chose" not in told(prepared, judged, 3, OtherRuns(12, some))


def test_a_checkpoint_that_a_run_made_on_leaving_is_no_epochs_end(prepared: Prepared, tmp_path: Path) -> None:
    rows = prepared.rows("val")
    checkpoint(tmp_path, 1, rows, np.ones((len(rows), 4), np.float32))
    checkpoint(tmp_path, 2, rows, None)
    predictions = last_predictions(Folder.at(str(tmp_path)))
    assert predictions is not None and np.array_equal(np.asarray(predictions["row"]), rows)
    assert last_predictions(Folder.at(str(tmp_path / "none"))) is None
