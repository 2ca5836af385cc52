"""The mean of a cross-validation's networks is judged by what each said of the fold that it was trained without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_prepared

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.predict import predict_rows
from raymed.recipes.exported import open_model
from raymed.registry.address import resolve_model
from raymed.registry.assessment import AssessmentSettings
from raymed.registry.candidate import Candidate
from raymed.registry.fold_mean import fold_mean
from raymed.registry.register import assess_and_register
from raymed.storage.folder import Folder
from raymed.systems.lung.recipe import LungRecipe
from raymed.tracking.tracker import Tracker
from raymed.training.checkpoint import seal
from raymed.training.predictions import write_predictions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", patients=96, slices=2)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker.open(f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db", "raymed-lung")


@pytest.fixture(scope="module")
def folds(data: Prepared, tracker: Tracker, tmp_path_factory: pytest.TempPathFactory) -> list[Candidate]:
    """Three networks, each of which was right about most patients that were left out of it."""
    home, parent, candidates = tmp_path_factory.mktemp("folds"), tracker.run("cv", "cv"), []
    for fold in range(data.folds):
        torch.manual_seed(fold)
        recipe = LungRecipe.for_data(data.labels, data.size)
        recipe.export(recipe.build(), home / f"{fold}" / "model")
        rows, noise = data.rows("val", fold), np.random.default_rng(fold)
        labels = data.columns(rows, ["label"])["label"]
        logits = (2 * np.eye(4)[labels] + noise.normal(size=(len(rows), 4))).astype(np.float32)
        write_predictions(home / f"{fold}", {"row": rows, "logits": logits})
        seal(home / f"{fold}", 0, 1)
        run = tracker.run(f"cv/fold_{fold}", f"fold_{fold}", parent)
        every = SliceSettings(choice="all")
        made = Candidate(run, str(home / f"{fold}"), data.folder.uri, fold, every, 0, data.digest)
        tracker.tags(run, made.tags())
        candidates.append(made)
    return candidates


@pytest.fixture(scope="module")
def mean(tracker: Tracker, folds: list[Candidate], tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    return fold_mean(tracker, folds, "lung", "cv/folds", "folds", Folder.at(tmp_path_factory.mktemp("mean")))


def test_it_is_found_again_by_its_run_and_made_once(tracker: Tracker, folds: list[Candidate], mean: Candidate) -> None:
    assert Candidate.of_run(tracker, mean.run_id) == mean and mean.folds == 3 and mean.fold is None
    assert tracker.describe(mean.run_id).parent == tracker.find("cv")
    into = Folder.at(Path(mean.checkpoint).parent)
    assert fold_mean(tracker, folds, "lung", "cv/folds", "folds", into) == mean and len(into.names()) == 1


def test_its_network_gives_the_mean_of_the_probabilities(data: Prepared, folds: list[Candidate], mean: Candidate) -> None:
    rows = data.rows("test")
    networks = [Path(each.checkpoint) / "model" for each in [mean, *folds]]
    together, *each = (torch.from_numpy(predict_rows(open_model(path), data, rows)[0]).softmax(-1) for path in networks)
    assert torch.allclose(together, torch.stack(each).mean(0), atol=1e-6)


def test_it_is_registered_with_what_each_network_said_of_those_left_out(
    data: Prepared, tracker: Tracker, folds: list[Candidate], mean: Candidate
) -> None:
    registered = assess_and_register(tracker, mean, how=AssessmentSettings(bootstrap=20))
    figures, card = registered.assessment.figures(), registered.card
    rows = [np.load(Path(each.checkpoint) / "predictions.npz") for each in folds]
    logits = np.concatenate([part["logits"] for part in rows])
    columns = data.columns(np.concatenate([part["row"] for part in rows]), ["patient", "label", "source"])
    patients = Temperature().pool(logits, columns)
    assert figures["calibrated_val_accuracy"] == pytest.approx((patients.decisions == patients.labels).mean(), abs=0.03)
    assert figures["calibrated_val_accuracy"] > 0.7 > figures["test_accuracy"], "the untrained mean knows nothing"
    known = resolve_model(registered.uri, tracker).notes(data, columns["patient"])
    assert known == ["the model was trained on 84 of these 84 patients: the figures flatter it"]
    assert "what 3 networks, each trained without one fold, say of that fold's patients, 84 in all" in card


def test_where_nobody_can_judge_the_mean_its_card_says_so(
    tracker: Tracker, mean: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = Candidate.used_rows
    monkeypatch.setattr(
        Candidate, "used_rows", lambda self, data: {name: rows for name, rows in used(self, data).items() if name != "test"}
    )
    card = assess_and_register(tracker, mean, how=AssessmentSettings(bootstrap=20)).card
    assert "the mean of 3 networks" in card and "There is no test split" not in card
    assert "84 left-out patients" in card
