"""Numbers of slices and ways to decide are compared on the same patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import script

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.systems.lung.choices import compare, places_of
from raymed.systems.lung.recipe import LungRecipe


def test_every_number_under_every_method_is_judged_on_all_patients(prepared: Prepared, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    recipe.export(recipe.build(), tmp_path / "model")
    job = script("compare_slices")
    outcome = job.main(
        job.CompareSlices(
            model=str(tmp_path / "model"), data=prepared.folder.uri, per_patient=[2, 1, 0], storage=str(tmp_path / "runs")
        )
    )
    choices = outcome.data["choices"]
    assert [(each["slices"], each["method"]) for each in choices] == [
        (slices, method) for slices in (2, 1, 0) for method in ("mean", "vote", "log-mean")
    ]
    assert choices[0]["more_accurate"] is None
    assert all(each["more_accurate"]["low"] is not None for each in choices[1:])
    assert all((each["loss"] is None) == (each["method"] == "vote") for each in choices)
    of_one = {each["method"]: each for each in choices if each["slices"] == 1}
    assert of_one["mean"]["accuracy"] == of_one["vote"]["accuracy"] == of_one["log-mean"]["accuracy"], (
        "one slice decides alone"
    )
    assert of_one["mean"]["loss"] == pytest.approx(of_one["log-mean"]["loss"], rel=1e-3)


def test_slices_are_those_that_training_would_choose(prepared: Prepared) -> None:
    rows = prepared.rows("val")
    for number, places in places_of(prepared, rows, SliceSettings(), [1, 3, 0], 0):
        expected = SliceSettings(per_patient=number) if number else SliceSettings(choice="all")
        assert rows[places].tolist() == expected.choose(prepared, rows, 0, None).tolist()


def test_a_temperature_is_fitted_for_each_way_to_decide() -> None:
    """Slices that are all too sure in the same measure: their mean is softened by their number, their log-mean is not."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(40) % 2, 4)
    logits = draw.normal(0, 3, (160, 2)) + 4 * np.eye(2)[labels]
    columns = {
        "patient": np.repeat([f"p{each:02d}" for each in range(40)], 4).astype(object),
        "label": labels,
        "source": np.full(160, "s", dtype=object),
    }
    mean, vote, logarithms = compare(logits, columns, [(4, np.arange(160))], bootstrap=50)
    assert vote.temperature == 1.0 and mean.temperature != pytest.approx(logarithms.temperature, rel=0.01)
    assert mean.loss is not None and logarithms.loss is not None and max(mean.loss, logarithms.loss) < np.log(2)
