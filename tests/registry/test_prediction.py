"""A table of predictions has a line for every patient who was named, and says where their pictures are of another kind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_prepared
from PIL import Image

from raymed.data.acquisition import Acquisition
from raymed.data.plan import SliceSettings
from raymed.data.sources import SourceSettings
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.predict import Inference, Model
from raymed.job.job import Outcome
from raymed.recipes.exported import open_model
from raymed.registry.prediction import PredictOptions, predict
from raymed.systems.toy.recipe import ToyRecipe


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_prepared(tmp_path_factory.mktemp("data") / "prepared", patients=8, slices=1)
    torch.manual_seed(0)
    recipe = ToyRecipe.for_data(data.labels, data.size)
    folder = tmp_path_factory.mktemp("network") / "model"
    recipe.export(recipe.build(), folder)
    return folder


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (28, 28), np.uint8)).save(path)


def predicted(network: Path, folder: Path, out: Path, trained: Acquisition | None = None) -> tuple[Outcome, pd.DataFrame]:
    recipe = ToyRecipe.read(network)
    labels = write_prepared(out.parent / "labels", patients=8, slices=1)
    inference = Inference(
        "toy v1", labels.labels, labels.image, SliceSettings(), Temperature(), "", acquisition=trained or Acquisition()
    )
    assert recipe.names == tuple(labels.labels.names)
    outcome = predict(PredictOptions(input=str(folder), out=str(out)), inference, lambda: open_model(network))
    return outcome, pd.read_csv(out, dtype={"patient_id": str}).set_index("patient_id")


def test_every_patient_who_was_named_has_a_line_with_the_reason_where_there_is_no_decision(
    network: Path, tmp_path: Path
) -> None:
    patients = tmp_path / "patients"
    picture(patients / "anna" / "1.png")
    (patients / "empty").mkdir()
    (patients / "moving").mkdir()
    (patients / "moving" / "1.gif").write_bytes(b"GIF89a")
    (patients / "broken").mkdir()
    (patients / "broken" / "1.png").write_bytes(b"no picture")
    (patients / "linked").symlink_to(tmp_path / "elsewhere")
    outcome, lines = predicted(network, patients, tmp_path / "out.csv")
    assert set(lines.index) == {"anna", "empty", "moving", "broken", "linked"}
    assert isinstance(lines.loc["anna", "decision"], str) and pd.isna(lines.loc["anna", "note"])
    for name in ("empty", "moving", "broken", "linked"):
        assert pd.isna(lines.loc[name, "decision"]) and lines.loc[name, "note"].startswith("no usable slice; "), name
    assert outcome.data["undecided"] == 4


def test_many_refused_slices_of_one_reason_leave_a_note_that_a_cell_can_hold(network: Path, tmp_path: Path) -> None:
    picture(tmp_path / "patients" / "anna" / "good.png")
    for number in range(400):
        (tmp_path / "patients" / "anna" / f"{number}.png").write_bytes(b"no picture" if number else b"")
    _, lines = predicted(network, tmp_path / "patients", tmp_path / "out.csv")
    note = lines.loc["anna", "note"]
    assert "anna/1.png: not a readable picture" in note and "399 such in all" in note
    assert "anna/0.png: the file is empty" in note and len(note) < 1000


def test_patients_unlike_those_trained_on_are_told_on_the_terminal_and_beside_their_decision(
    network: Path, tmp_path: Path
) -> None:
    picture(tmp_path / "patients" / "anna" / "1.png")
    picture(tmp_path / "patients" / "bert" / "1.png")
    outcome, lines = predicted(network, tmp_path / "patients", tmp_path / "out.csv", Acquisition({"CT": 9}))
    how = "unlike the training pictures: picture, and the model was trained on CT, whose grey values are windowed"
    assert all(note.startswith(how) for note in lines["note"])
    assert f"{how} Hounsfield units (2 patients)" in outcome.text
    (tmp_path / "again").mkdir()
    outcome, lines = predicted(network, tmp_path / "patients", tmp_path / "again/out.csv", Acquisition({"picture": 9}))
    assert "unlike the" not in outcome.text and lines["note"].isna().all()


def test_a_csv_that_cannot_be_written_ends_the_job_before_a_picture_is_read(network: Path, tmp_path: Path) -> None:
    picture(tmp_path / "patients" / "anna" / "1.png")
    (tmp_path / "file").write_text("")
    labels = write_prepared(tmp_path / "labels", patients=8, slices=1)
    inference = Inference("toy v1", labels.labels, labels.image, SliceSettings(), Temperature(), "")

    def too_late() -> Model:
        raise AssertionError("the network was opened")

    for out, reason in (
        (tmp_path / "patients", "is a folder"),
        (tmp_path / "file" / "out.csv", "cannot write"),
        (tmp_path / "patients" / "anna" / "1.png", "would be lost"),
    ):
        with pytest.raises(UserError, match=reason):
            predict(PredictOptions(input=str(tmp_path / "patients"), out=str(out)), inference, too_late)


def test_patients_numbered_anew_in_each_class_folder_are_not_taken_for_one_person(tmp_path: Path) -> None:
    for name in ("normal/1", "normal/2", "viral/1"):
        picture(tmp_path / "patients" / name / "a.png")
    labels = write_prepared(tmp_path / "labels", patients=8, slices=1)
    inference = Inference("toy v1", labels.labels, labels.image, SliceSettings(), Temperature(), "")

    def decided(regex: str | None) -> Outcome:
        source = SourceSettings(labelled=True, patient_regex=regex)
        options = PredictOptions(input=str(tmp_path / "patients"), out="", source=source, dry_run=True)
        return predict(options, inference, lambda: pytest.fail("a dry run opened the network"))

    with pytest.raises(UserError, match=r"1 \(normal and viral\).*patient-regex '(.+)'") as caught:
        decided(None)
    regex = re.search(r"patient-regex '(.+)'", str(caught.value))
    assert regex and "3 slices in 3 studies" in decided(regex[1]).text


def test_a_decision_on_two_examinations_says_so_and_a_csv_that_names_the_folder_of_one_decides_on_that(
    network: Path, tmp_path: Path
) -> None:
    for name in ("anna/2023/1.png", "anna/2026/1.png", "berta/1.png"):
        picture(tmp_path / "patients" / name)
    outcome, lines = predicted(network, tmp_path / "patients", tmp_path / "out.csv")
    assert lines.loc["anna", "note"].startswith("decided on 2 series together: to decide on one alone, name its folder")
    assert lines.loc["anna", "slices"] == 2 and pd.isna(lines.loc["berta", "note"])
    assert "was replaced" not in outcome.text
    (tmp_path / "one.csv").write_text("image,patient_id\npatients/anna/2026,anna\n")
    (tmp_path / "again").mkdir()
    outcome, lines = predicted(network, tmp_path / "one.csv", tmp_path / "again" / "out.csv")
    assert lines.loc["anna", "slices"] == 1 and pd.isna(lines.loc["anna", "note"])
