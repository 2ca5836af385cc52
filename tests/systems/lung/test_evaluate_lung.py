"""Judging a model leaves what a person can look into: each patient's and each slice's probabilities."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import script

from raymed.data.labels import LabelTable
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.predict import Inference
from raymed.registry.address import run_of
from raymed.registry.candidate import FOLDER
from raymed.registry.served_model import save
from raymed.systems.lung.recipe import LungRecipe
from raymed.tracking.tracker import Tracker
from raymed.training.checkpoint import Progress
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec

JOB = Path(__file__).parents[3] / "jobs" / "evaluate_lung.py"


def test_patients_are_the_means_of_the_slices_that_are_written_beside_them(prepared: Prepared, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    recipe.export(recipe.build(), tmp_path / "model")
    job = runpy.run_path(str(JOB))
    options = job["Evaluate"](
        model=str(tmp_path / "model"), data=prepared.folder.uri, storage=str(tmp_path / "runs"), out=str(tmp_path / "out")
    )
    outcome = job["main"](options)
    patients, slices = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("patients", "slices"))
    means = slices.groupby("patient_id")[[name for name in slices if name.startswith("p_")]].mean()
    for name, column in means.items():
        assert patients.set_index("patient_id")[name].to_dict() == pytest.approx(column.to_dict())
    assert outcome.data["slices"]["accuracy"] == pytest.approx((slices["label"] == slices["decision"]).mean())
    assert "single slices" in outcome.text


def test_slices_that_vote_decide_by_their_majority_and_give_figures_of_decisions_only(
    prepared: Prepared, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    recipe.export(recipe.build(), tmp_path / "model")
    job = runpy.run_path(str(JOB))
    options = job["Evaluate"](
        model=str(tmp_path / "model"),
        data=prepared.folder.uri,
        split="all",
        method="vote",
        storage=str(tmp_path / "runs"),
        out=str(tmp_path / "out"),
    )
    figures = job["main"](options).data["evaluation"]["metrics"]
    assert "accuracy" in figures and not {"loss", "macro_auc", "ece"} & figures.keys()
    patients, slices = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("patients", "slices"))
    for patient, votes in slices.groupby("patient_id")["decision"]:
        counts = votes.value_counts()
        decision = patients.set_index("patient_id").loc[patient, "decision"]
        assert counts[decision] == counts.max()


def test_a_bare_checkpoint_is_not_predicted_with(prepared: Prepared, tmp_path: Path) -> None:
    """How its pictures were windowed is not in it, and neither is its temperature."""
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    recipe.export(recipe.build(), tmp_path / "model")
    job, out = script("predict_lung"), tmp_path / "out.csv"
    options = job.PredictLung(
        model=str(tmp_path / "model"), input=str(tmp_path), out=str(out), storage=str(tmp_path / "runs")
    )
    with pytest.raises(UserError, match=r"is a bare checkpoint: .*jobs/promote\.py RUN_ID "):
        job.main(options)
    tracker = Tracker.open(options.tracking, "raymed-lung")
    run = tracker.client.create_run(tracker.experiment_id, tags={"raymed.folder": str(tmp_path)}).info.run_id
    for each in (str(tmp_path / "model"), f"runs:/{run}/model"):
        assert run_of(each, tracker) == run
    with pytest.raises(UserError, match=f"jobs/promote.py {run} "):
        job.main(options)
    assert not out.exists()


def test_a_bare_checkpoint_is_not_judged_by_other_classes(prepared: Prepared, tmp_path: Path) -> None:
    names = list(reversed(prepared.labels.names))
    labels = LabelTable(
        tuple(replace(row, name=name) for row, name in zip(prepared.labels.classes, names, strict=True))
    )  # the same codes, which mean something else
    recipe = LungRecipe.for_data(labels, prepared.size)
    recipe.export(recipe.build(), tmp_path / "model")
    job = runpy.run_path(str(JOB))
    options = job["Evaluate"](model=str(tmp_path / "model"), data=prepared.folder.uri, storage=str(tmp_path / "runs"))
    with pytest.raises(UserError, match=f"decides between {', '.join(names)}, but"):
        job["main"](options)


def test_a_bare_checkpoint_is_judged_on_as_many_slices_as_its_run_was(prepared: Prepared, tmp_path: Path) -> None:
    """Sixteen of each patient, whatever it was trained on."""
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    recipe.export(recipe.build(), tmp_path / "step-00000001" / "model")
    spec = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(), SliceSettings(per_patient=3, limit=8))
    Progress(origin=spec.origin()).write(tmp_path / "step-00000001")
    job = runpy.run_path(str(JOB))
    for checkpoint in (tmp_path / "step-00000001", tmp_path / "step-00000001" / "model"):
        options = job["Evaluate"](
            model=str(checkpoint), data=prepared.folder.uri, split="val", storage=str(tmp_path / "runs"), dry_run=True
        )
        outcome = job["main"](options)
        assert "3 slices of each patient" in outcome.text
        assert outcome.data["slices"] == 3 * len(set(prepared.columns(prepared.rows("val"), ["patient"])["patient"]))
    fewer = replace(options, per_patient=1)
    assert "asked about other slices than it was trained on: 1 slices of each patient (uniform)" in job["main"](fewer).text


def test_a_limit_of_training_does_not_leave_patients_out_of_judging(prepared: Prepared, tmp_path: Path) -> None:
    assert SliceSettings(limit=2, per_patient=3).unlimited == SliceSettings(per_patient=3)
    torch.manual_seed(0)
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    recipe.export(recipe.build(), tmp_path / "network")
    inference = Inference("limited", prepared.labels, prepared.image, SliceSettings(limit=2), Temperature(), prepared.digest)
    save(tmp_path / "network", inference, tmp_path / "model")
    job = runpy.run_path(str(JOB))
    options = job["Evaluate"](
        model=str(tmp_path / "model"), data=prepared.folder.uri, split="all", storage=str(tmp_path / "runs"), bootstrap=10
    )
    assert job["main"](options).data["evaluation"]["patients"] == len(set(prepared.index["patient"].to_pylist()))


def test_each_model_that_test_patients_judge_is_counted_once(prepared: Prepared, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    job, said = runpy.run_path(str(JOB)), []
    options = job["Evaluate"](model="", data=prepared.folder.uri, storage=str(tmp_path / "runs"), bootstrap=10)
    tracker = Tracker.open(options.tracking, "raymed-lung")
    for name, split in (("first", "test"), ("second", "all"), ("second", "test")):
        checkpoint = tmp_path / "runs" / name / "step-00000001-ab"
        if not checkpoint.exists():
            (checkpoint / "model").mkdir(parents=True)
            recipe.export(recipe.build(), checkpoint / "model")
            tracker.tags(tracker.run(name, name), {FOLDER: str(checkpoint.parent)})
        said.append(job["main"](replace(options, model=str(checkpoint), split=split)).text)
    flatters = "these test patients have judged 2 models so far"
    assert [flatters in text for text in said] == [False, True, True]
    assert flatters not in job["main"](replace(options, model=str(checkpoint), split="val")).text
