"""Judging a model leaves what a person can look into: each patient's and each slice's probabilities."""

from __future__ import annotations

import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch

from raymed.data.labels import LabelTable
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.recipes.lung import LungRecipe

JOB = Path(__file__).parent.parent.parent / "jobs" / "evaluate_lung.py"


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


def test_a_bare_checkpoint_is_not_judged_by_other_classes(prepared: Prepared, tmp_path: Path) -> None:
    names = list(reversed(prepared.labels.names))
    recipe = LungRecipe.for_data(LabelTable.of(names), prepared.size)
    recipe.export(recipe.build(), tmp_path / "model")
    job = runpy.run_path(str(JOB))
    options = job["Evaluate"](model=str(tmp_path / "model"), data=prepared.folder.uri, storage=str(tmp_path / "runs"))
    with pytest.raises(UserError, match=f"decides between {', '.join(names)}, but"):
        job["main"](options)
