"""A served model must decide on files, volumes and arrays as the evaluation does, and never on what it cannot read."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from conftest import write_prepared
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from PIL import Image
from pydicom.data import get_testdata_file

from raymed.data.acquisition import Acquisition
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.data.sources import SourceSettings, list_source
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.patients import softmax
from raymed.evaluation.predict import Inference, chosen_rows, predict_rows, predict_studies
from raymed.recipes.exported import open_model
from raymed.registry.served_model import save
from raymed.systems.toy.recipe import ToyRecipe

CLASSES = ("normal", "bacterial", "viral", "pneumocystis")
SHARES = [f"p_{name}" for name in CLASSES]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", patients=8, slices=5)


@pytest.fixture(scope="module")
def network(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = ToyRecipe.for_data(data.labels, data.size)
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    recipe.export(recipe.build(), folder)
    return folder


@pytest.fixture(scope="module")
def served(data: Prepared, network: Path, tmp_path_factory: pytest.TempPathFactory) -> mlflow.pyfunc.PyFuncModel:
    folder = tmp_path_factory.mktemp("served") / "model"
    save(network, Inference("toy v1", data.labels, data.image, SliceSettings(3), Temperature(1.5, 0.8), data.digest), folder)
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def pictures(data: Prepared) -> np.ndarray:
    """The test patient's slices, uint8 [5, h, w]."""
    return np.stack([record.images[0].pixels[..., 0] for record in data.read(data.rows("test"))])


@pytest.fixture(scope="module")
def expected(data: Prepared, network: Path) -> np.ndarray:
    logits, _ = predict_rows(open_model(network), data, chosen_rows(data, "test", None, SliceSettings(3)))
    return Temperature(1.5, 0.8).scale(softmax(logits).mean(axis=0, keepdims=True), np.array([3]))[0]


@pytest.fixture
def folder(pictures: np.ndarray, tmp_path: Path) -> Path:
    (tmp_path / "patient").mkdir()
    for place, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "patient" / f"{place}.png")
    return tmp_path / "patient"


def ask(model: mlflow.pyfunc.PyFuncModel, *rows: tuple[str, object]) -> pd.DataFrame:
    patients, images = zip(*rows, strict=True)
    return model.predict(pd.DataFrame({"patient_id": list(patients), "image": list(images)}))


def test_a_folder_its_files_and_its_array_get_the_evaluations_decision(
    served: mlflow.pyfunc.PyFuncModel, pictures: np.ndarray, expected: np.ndarray, folder: Path
) -> None:
    files = [("files", str(folder / f"{place}.png")) for place in range(5)]
    answer = ask(served, ("folder", str(folder)), *files, ("array", pictures), ("json", pictures.tolist()))
    assert list(answer.columns) == ["patient_id", "decision", "shown_as", *SHARES, "slices", "model", "note"]
    assert list(answer["patient_id"]) == ["folder", "files", "array", "json"]
    np.testing.assert_allclose(answer[SHARES], np.tile(expected, (4, 1)), atol=1e-6)
    assert set(answer["slices"]) == {3} and set(answer["model"]) == {"toy v1"}
    assert set(answer["decision"]) == {CLASSES[expected.argmax()]}


def test_hounsfield_units_are_windowed_as_the_training_data_were(
    served: mlflow.pyfunc.PyFuncModel, pictures: np.ndarray
) -> None:
    body = pictures.copy()
    body[:, :3] = 230  # tissue
    units = np.ceil(body / 255 * 1500 - 1350).astype(np.int16)
    shown = np.clip(np.floor((units + 1350) / 1500 * 255), 0, 255).astype(np.uint8)
    assert np.abs(shown.astype(int) - body).max() <= 1
    answer = ask(served, ("units", units), ("shown", shown), ("json", units.tolist()))
    np.testing.assert_allclose(answer[SHARES].iloc[0], answer[SHARES].iloc[1], atol=1e-3)
    np.testing.assert_allclose(answer[SHARES].iloc[0], answer[SHARES].iloc[2], atol=1e-6)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((2, 28, 28), np.float32), "float32; give uint8"),
        (np.full((2, 28, 28), 900, np.int16), "not in Hounsfield units"),
        (np.zeros((28, 28), np.uint8), "28 x 28 is neither"),
        (np.zeros((0, 28, 28), np.uint8), "0 x 28 x 28 x 1 is neither"),
        (np.zeros((28, 28, 3), np.uint8), "28 x 28 x 3 may be one colour picture"),
        ([[[300, 0], [0, 0]]], "int64; give uint8"),
        ([[[-1000, 40_000], [0, 0]]], "int64; give uint8"),
        ([[[1, 2]], [[1]]], "slices of different sizes"),
    ],
)
def test_an_array_that_would_be_a_guess_gets_no_decision(
    image: object, reason: str, served: mlflow.pyfunc.PyFuncModel
) -> None:
    (line,) = ask(served, ("a", image)).to_dict("records")
    assert pd.isna(line["decision"])
    assert line["slices"] == 0 and np.isnan(line["p_viral"])
    assert line["note"].startswith("no usable slice") and reason in line["note"]


def test_a_slice_of_nothing_but_padding_is_noted_and_costs_neither_its_array_nor_other_patients(
    served: mlflow.pyfunc.PyFuncModel, pictures: np.ndarray
) -> None:
    body = pictures[:3].copy()
    body[:, :3] = 230  # tissue
    units = np.ceil(body / 255 * 1500 - 1350).astype(np.int16)
    padding = np.full_like(units[:1], -3024)
    answer = ask(served, ("padded", np.concatenate([units, padding])), ("whole", units), ("lost", padding))
    np.testing.assert_allclose(answer[SHARES].iloc[0], answer[SHARES].iloc[1], atol=1e-6)
    assert list(answer["slices"]) == [3, 3, 0]
    assert answer["note"][0] == "array 0, slice 3: nothing but padding"


def test_a_broken_file_is_noted_and_the_rest_decides(served: mlflow.pyfunc.PyFuncModel, folder: Path) -> None:
    (folder / "9.png").write_bytes(b"")
    (line,) = ask(served, ("a", str(folder))).to_dict("records")
    assert line["slices"] == 3 and "9.png: the file is empty" in line["note"]


def test_rows_without_a_patient_are_refused_not_dropped(served: mlflow.pyfunc.PyFuncModel, folder: Path) -> None:
    rows = pd.DataFrame({"patient_id": ["a", None], "image": [str(folder)] * 2})
    with pytest.raises(UserError, match="1 of 2 rows have no patient_id"):
        served.unwrap_python_model().predict(None, rows)


def test_several_patients_under_one_id_and_lost_paths_are_refused(served: mlflow.pyfunc.PyFuncModel, folder: Path) -> None:
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "1.png").write_bytes((folder / "1.png").read_bytes())
    with pytest.raises(UserError, match="holds several patients"):
        ask(served, ("a", str(folder.parent)))
    with pytest.raises(UserError, match="no such file or folder"):
        ask(served, ("a", str(folder / "nowhere")))


def test_files_named_one_by_one_are_looked_at_in_the_order_of_their_folder_by_job_model_and_service(
    network: Path, data: Prepared, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    folder = tmp_path / "patients" / "anna"
    folder.mkdir(parents=True)
    for number in range(1, 13):  # as text, 10 to 12 come before 2
        Image.fromarray(draw.integers(0, 255, (28, 28), np.uint8)).save(folder / f"{number}.png")
    inference = Inference("toy v1", data.labels, data.image, SliceSettings(3), Temperature(), data.digest)
    listing = list_source(tmp_path / "patients", SourceSettings(labelled=False))
    (job,) = predict_studies(open_model(network), listing, inference)
    rows = pd.DataFrame({"patient_id": "anna", "image": [str(path) for path in sorted(folder.iterdir(), key=str)]})
    relative = [str(Path(image).relative_to(tmp_path)) for image in rows["image"]]
    rows.assign(image=relative).to_csv(tmp_path / "list.csv", index=False)
    listed = list_source(tmp_path / "list.csv", SourceSettings(labelled=False))
    (table,) = predict_studies(open_model(network), listed, inference)
    save(network, inference, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    asked = {
        "rows as their names sort": model.predict(rows),
        "rows in disorder": model.predict(rows.sample(frac=1, random_state=1)),
        "folder": model.predict(pd.DataFrame({"patient_id": ["anna"], "image": [str(folder)]})),
    }
    with TestClient(scoring_server.init(model)) as service:
        answer = service.post("/invocations", json={"dataframe_split": rows.to_dict(orient="split")})
        asked["service"] = pd.DataFrame(answer.json()["predictions"])
    assert table.probabilities == job.probabilities
    for way, answer in asked.items():
        np.testing.assert_allclose(answer[SHARES].to_numpy()[0], job.probabilities, atol=1e-6, err_msg=way)
        assert answer["slices"].tolist() == [3], way
    with pytest.raises(UserError, match="named twice"):
        model.predict(pd.concat([rows, rows[:1]]))


def ct(path: Path, person: str, height: float = 0.0, **changes: object) -> None:
    """pydicom's small CT as an axial slice of a person, in a series of its folder."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = person, "", ""
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, height]
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path.parent)])
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    for name, value in changes.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)


def test_a_patient_of_whom_nothing_can_be_used_costs_no_other_their_answer(
    served: mlflow.pyfunc.PyFuncModel, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.dcm").write_bytes(b"")
    (tmp_path / "letter.txt").write_text("")
    asked = [(name, str(tmp_path / name)) for name in ("empty", "broken", "letter.txt")]
    answer = ask(served, ("good", str(folder)), *asked).set_index("patient_id")
    assert answer.loc["good", "slices"] == 3
    for name, reason in (("empty", "an empty folder"), ("broken", "0 bytes"), ("letter.txt", "not a picture")):
        assert pd.isna(answer.loc[name, "decision"]) and reason in answer.loc[name, "note"], name


@pytest.mark.parametrize("image", ["{person}", "{person}/1.dcm"])
def test_files_of_two_persons_under_one_id_get_no_decision(
    served: mlflow.pyfunc.PyFuncModel, tmp_path: Path, image: str
) -> None:
    for person in ("one", "two"):
        ct(tmp_path / person / "1.dcm", f"MRN-{person}")
    asked = [("a", str(tmp_path / image.format(person=person))) for person in ("one", "two")]
    (line,) = ask(served, *asked).to_dict("records")
    assert pd.isna(line["decision"]) and "files of several persons" in line["note"] and "MRN" not in line["note"]


def test_a_decision_on_several_series_or_one_with_slices_missing_says_so(
    served: mlflow.pyfunc.PyFuncModel, tmp_path: Path
) -> None:
    for height in (0, 8, 16, 40):
        ct(tmp_path / "gap" / f"{height}.dcm", "MRN-1", height)
    for date in ("20230101", "20230111", ""):
        ct(tmp_path / "two" / (date or "unknown") / "1.dcm", "MRN-2", StudyDate=date)
    gap, two = ask(served, ("gap", str(tmp_path / "gap")), ("two", str(tmp_path / "two"))).to_dict("records")
    assert gap["note"] == "slices are missing: 24.0 mm between 16.dcm and 40.dcm, usually 8.0 mm"
    assert two["note"].startswith("decided on 3 series together, taken 10 days apart: to decide on one alone")
    assert "2023" not in two["note"].split(":")[0]


def test_an_answer_about_pictures_of_another_kind_says_so(
    network: Path, data: Prepared, pictures: np.ndarray, tmp_path: Path
) -> None:
    trained = Acquisition({"CR": 8})
    inference = Inference(
        "x-ray", data.labels, data.image, SliceSettings(3), Temperature(), data.digest, acquisition=trained
    )
    save(network, inference, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    body = pictures.copy()
    body[:, :3] = 230  # tissue
    units = np.ceil(body / 255 * 1500 - 1350).astype(np.int16)
    (line,) = ask(model, ("a", units)).to_dict("records")
    assert line["note"] == "unlike the training pictures: CT, and the model was trained on CR, whose grey values are no " + (
        "windowed Hounsfield units"
    )
    assert Inference.read(next((tmp_path / "model").rglob("inference.json"))).acquisition == trained
