"""What is said to be used must be what is used, in every split and of every class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_prepared

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.data.usage import Usage
from raymed.systems.toy.options import ToyOptions
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", patients=32, slices=4)


def spec(data: Prepared, slices: SliceSettings, fold: int | None = None) -> RunSpec:
    recipe = ToyRecipe.for_data(data.labels, data.size)
    return RunSpec("run", "runs", data.folder.uri, recipe, TrainSettings(), slices, fold)


def test_a_limit_and_the_choice_of_slices_are_counted_as_the_plan_takes_them(data: Prepared) -> None:
    limited = spec(data, SliceSettings(per_patient=3, limit=5))
    usage = limited.usage(data)
    assert str(usage) == "train 5 of 24 patients (15 records), val 4 patients (12 records)"
    assert usage.leaves_patients_out and usage.flat() == {
        "train": {"patients": 5, "records": 15},
        "val": {"patients": 4, "records": 12},
    }
    planned = {row for batch in limited.plan(data, 0).batches for pack in batch for row in pack}
    assert len(planned) == 15 and len(set(data.columns(sorted(planned), ["patient"])["patient"])) == 5


def test_classes_add_up_and_nothing_is_left_out_without_a_limit(data: Prepared) -> None:
    usage = spec(data, SliceSettings(per_patient=4)).usage(data)
    assert not usage.leaves_patients_out
    assert usage.table() == [[name, "6 (24)", "1 (4)"] for name in data.labels.names], (
        "of every class six train patients with four slices, and one val patient"
    )


def test_a_fold_counts_its_own_patients(data: Prepared) -> None:
    usage = spec(data, SliceSettings(), fold=1).usage(data)
    train, val = usage.total("train")[0], usage.total("val")[0]
    assert (train, val) == (len(set(_patients(data, "train", 1))), len(set(_patients(data, "val", 1)))) and train + val == 28


def _patients(data: Prepared, split: str, fold: int) -> list[str]:
    return list(data.columns(data.rows(split, fold), ["patient"])["patient"])


def test_rows_that_are_not_used_are_not_counted(data: Prepared, tmp_path: Path) -> None:
    rows = data.rows("test")
    usage = Usage.of(data, {"test": rows[:1]}, {"test": rows})
    assert usage.total("test") == (1, 1, 4) and usage.splits == ["test"]


def test_a_limit_is_told_before_anything_is_trained_and_only_then(
    data: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ToyOptions(data=data.folder.uri, storage=str(tmp_path))
    options.spec(data)
    assert "limit" not in caplog.text
    replace(options, slices=SliceSettings(limit=5)).spec(data)
    assert "a limit leaves patients out: train 5 of 24 patients (20 records), val 4 patients" in caplog.text
    assert "registered under no alias unless --alias is given" in caplog.text
