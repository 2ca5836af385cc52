"""Predictions must be in order, complete, and the same whether a patient comes prepared or as files."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from forks import starting_quick
from PIL import Image

from raymed.data.image import PIXEL_RULE, ImageSettings
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.data.sources import SourceSettings, list_source
from raymed.errors import RunError, UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.patients import softmax
from raymed.evaluation.predict import Inference, Model, chosen_rows, predict_rows, predict_studies, table
from raymed.recipes.exported import open_model
from raymed.registry.address import Resolved
from raymed.registry.prediction import PredictOptions, predict
from raymed.systems.toy.recipe import ToyRecipe

REAL = os.environ.get("RAYMED_REAL_DATA")


@pytest.fixture(scope="module")
def exported(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    recipe.export(recipe.build(), folder)
    return folder


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return open_model(exported)


@pytest.fixture
def inference(prepared: Prepared) -> Inference:
    return Inference(
        "test v1", prepared.labels, prepared.image, SliceSettings(per_patient=3), Temperature(1.7, 0.8), prepared.digest
    )


@pytest.fixture(scope="module")
def folders(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared test patients as folders of PNG files."""
    root = tmp_path_factory.mktemp("patients")
    for record in prepared.read(prepared.rows("test")):
        (root / record.patient).mkdir(exist_ok=True)
        Image.fromarray(record.images[0].pixels[..., 0]).save(root / record.patient / f"{record.position}.png")
    return root


def test_each_row_gets_its_own_logits_whatever_the_order_and_batch(model: Model, prepared: Prepared) -> None:
    rows = np.random.default_rng(0).permutation(prepared.rows("all"))
    logits, columns = predict_rows(model, prepared, rows, micro_batch=7)
    alone = np.concatenate([predict_rows(model, prepared, rows[place : place + 1])[0] for place in (0, 5, 50)])
    np.testing.assert_allclose(logits[[0, 5, 50]], alone, atol=1e-6)
    assert list(columns["id"]) == [record.id for record in prepared.read(rows)]
    assert len(np.unique(logits, axis=0)) == len(rows)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_predict_what_one_does(
    model: Model, prepared: Prepared, folders: Path, inference: Inference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymed.evaluation.predict.CHUNK_BYTES", 30_000)  # several tasks from a small set
    rows = prepared.rows("train")
    one, two = (predict_rows(model, prepared, rows, micro_batch=4, workers=workers)[0] for workers in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)
    listing = list_source(folders, SourceSettings(labelled=False))
    here, there = (list(predict_studies(model, listing, inference, workers=workers)) for workers in (1, 2))
    assert [each.patient for each in here] == [each.patient for each in there]
    np.testing.assert_allclose([each.probabilities for each in here], [each.probabilities for each in there], atol=1e-6)
    with pytest.raises(UserError, match="1000 workers need"):
        predict_rows(model, prepared, rows, workers=1000)


WHERE = """
import logging
import sys
import threading
from pathlib import Path
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from raymed import systems
systems.__path__.append(sys.argv[2])
from raymed.systems.toy import recipe
cloudpickle.register_pickle_by_value(recipe)
from raymed.evaluation import predict
from raymed.evaluation.predict import _spread
from raymed.recipes.exported import open_model

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
worker = cluster.add_node(num_cpus=2, num_gpus=1)
ray.init(address=cluster.address, log_to_driver=False)
model = open_model(Path(sys.argv[1]))
holder = ray.remote(num_gpus=1)(type("Holder", (), {"there": lambda self: None})).remote()
ray.get(holder.there.remote())
predict.PERIOD = 0.5
logging.basicConfig(level=logging.INFO)
threading.Timer(2, ray.kill, (holder,)).start()  # a search's trial ends
nodes = _spread(model, 4, 1, range(3), lambda predictor, item: ray.get_runtime_context().get_node_id())
print({*nodes} == {worker.node_id})
"""


@pytest.mark.slow
def test_a_head_without_a_gpu_leaves_predicting_to_the_machine_that_has_one(exported: Path, tmp_path: Path) -> None:
    """The winner of a night was judged on the head's CPUs while the GPUs left; or waited for them without a word."""
    rooms = str(Path(__file__).parents[1] / "rooms")
    (tmp_path / "where.py").write_text(WHERE)
    command = starting_quick(tmp_path / "where.py", str(exported), rooms)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr[-2000:]
    assert "predicting waits for a GPU and a CPU: 1 wanted, and others hold all that the cluster has" in done.stderr


def test_files_are_judged_as_prepared_rows_are(
    model: Model, prepared: Prepared, folders: Path, inference: Inference
) -> None:
    chosen = chosen_rows(prepared, "test", None, inference.slices)
    logits, found = predict_rows(model, prepared, chosen)
    listing = list_source(folders, SourceSettings(labelled=False))
    for each in predict_studies(model, listing, inference):
        own = found["patient"] == each.patient
        mine = inference.temperature.pool(logits[own], {name: column[own] for name, column in found.items()})
        assert each.slices == own.sum() == 3
        np.testing.assert_allclose(each.probabilities, mine.probabilities[0], atol=1e-6)


def test_a_bad_slice_is_named_and_a_patient_without_a_good_one_gets_no_decision(
    model: Model, inference: Inference, folders: Path, tmp_path: Path
) -> None:
    for patient in ("good", "bad"):
        (tmp_path / patient).mkdir()
        (tmp_path / patient / "0.png").write_bytes(b"no picture")
    source = next(folders.iterdir())
    (tmp_path / "good" / "1.png").write_bytes((source / "1.png").read_bytes())
    listing = list_source(tmp_path, SourceSettings(labelled=False))
    bad, good = table(predict_studies(model, listing, inference), inference)
    assert (bad["patient_id"], bad["decision"], bad["slices"], bad["p_viral"]) == ("bad", None, 0, None)
    assert bad["note"].startswith("no usable slice; bad/0.png: not a readable picture")
    assert good["slices"] == 1 and "good/0.png: not a readable picture" in good["note"]
    assert good["decision"] == max(inference.labels.names, key=lambda name: good[f"p_{name}"])


def test_every_patient_who_was_named_has_a_line_with_the_reason_where_there_is_no_decision(
    model: Model, inference: Inference, folders: Path, tmp_path: Path
) -> None:
    source = tmp_path / "new"
    (source / "anna").mkdir(parents=True)
    (source / "anna" / "1.png").write_bytes((next(folders.iterdir()) / "1.png").read_bytes())
    (source / "berta").mkdir()
    (source / "berta" / "1.gif").write_bytes(b"GIF89a")
    (source / "carla").mkdir()
    (source / "dora").symlink_to(folders)
    predict(PredictOptions(input=str(source), out=str(tmp_path / "out.csv")), inference, lambda: model)
    lines = pd.read_csv(tmp_path / "out.csv", keep_default_na=False).set_index("patient_id")
    assert list(lines.index) == ["anna", "berta", "carla", "dora"]
    assert lines["decision"]["anna"] in inference.labels.names and set(lines["decision"][1:]) == {""}
    assert "none of the files in the folder (1) is a picture" in lines["note"]["berta"]
    assert "an empty folder" in lines["note"]["carla"] and "a symbolic link to a folder" in lines["note"]["dora"]


def test_patients_of_whom_nothing_can_be_used_have_their_lines_also_where_there_are_no_others(
    model: Model, inference: Inference, tmp_path: Path
) -> None:
    for patient in ("anna", "berta"):
        (tmp_path / "new" / patient).mkdir(parents=True)
        (tmp_path / "new" / patient / "1.dcm").write_bytes(b"no DICOM")
    outcome = predict(PredictOptions(input=str(tmp_path / "new"), out=str(tmp_path / "out.csv")), inference, lambda: model)
    assert (outcome.data["patients"], outcome.data["undecided"]) == (2, 2)
    notes = pd.read_csv(tmp_path / "out.csv")["note"]
    assert all("no usable slice" in note and "not a readable DICOM file" in note for note in notes)


def test_the_limit_of_a_first_try_does_not_drop_patients_from_predictions(
    model: Model, inference: Inference, folders: Path
) -> None:
    listing = list_source(folders, SourceSettings(labelled=False))
    limited = Inference(**{**vars(inference), "slices": SliceSettings(per_patient=3, limit=1)})
    assert all(each.slices == 3 for each in predict_studies(model, listing, limited))


def test_pictures_of_another_size_are_refused(model: Model, tmp_path: Path, prepared: Prepared) -> None:
    from conftest import write_prepared

    other = write_prepared(tmp_path / "other", patients=8, size=56)
    with pytest.raises(UserError, match="56x56 pixels, but the model takes 28x28"):
        predict_rows(model, other, other.rows("val"))
    with pytest.raises(UserError, match="nothing to predict"):
        predict_rows(model, prepared, prepared.rows("val")[:0])


def test_a_network_that_answers_nan_predicts_nothing(model: Model, inference: Inference, folders: Path) -> None:
    recipe, broken = model[0], model[0].build()
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    listing = list_source(folders, SourceSettings(labelled=False))
    with pytest.raises(RunError, match="not a number"):
        list(predict_studies((recipe, broken), listing, inference))


def test_inference_settings_survive_their_file(inference: Inference, tmp_path: Path) -> None:
    path = tmp_path / "inference.json"
    path.write_text(inference.to_json(), encoding="utf-8")
    assert Inference.read(path) == inference
    path.write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"inference\.json does not describe a model"):
        Inference.read(path)


def test_a_model_of_another_pixel_rule_is_not_asked_about_files(
    model: Model, inference: Inference, prepared: Prepared, folders: Path, tmp_path: Path
) -> None:
    values = json.loads(inference.to_json())
    values["image"]["rule"] = PIXEL_RULE - 1
    path = tmp_path / "inference.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    earlier = Inference.read(path)
    assert earlier != inference
    with pytest.raises(UserError, match=rf"rule {PIXEL_RULE - 1}, and this raymed reads them by rule {PIXEL_RULE}"):
        list(predict_studies(model, list_source(folders, SourceSettings(labelled=False)), earlier))
    options = PredictOptions(input=str(folders), out=str(tmp_path / "out.csv"), dry_run=True)
    with pytest.raises(UserError, match="pixel rule"):
        predict(options, earlier, lambda: model)
    with pytest.raises(UserError, match="prepare the data again"):
        Resolved("earlier", tmp_path, earlier).notes(prepared, np.array(["a"]))


def test_a_model_that_recorded_no_pixel_rule_is_of_the_first(inference: Inference, tmp_path: Path) -> None:
    values = json.loads(inference.to_json())
    del values["image"]["rule"]
    path = tmp_path / "inference.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert Inference.read(path).image.rule == 1


@pytest.mark.parametrize("content", ["", "{}", '{"recipe": "unknown"}', "[]"])
def test_a_folder_without_a_known_model_is_a_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(UserError, match=r"recipe"):
        open_model(tmp_path)


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="RAYMED_REAL_DATA is not set")
def test_png_dicom_and_nifti_of_real_patients_are_predicted_alike(prepared: Prepared) -> None:
    root = Path(REAL or "")
    recipe = ToyRecipe.for_data(prepared.labels, 56)
    torch.manual_seed(0)
    network = recipe.build().eval()
    inference = Inference("x", prepared.labels, ImageSettings(size=56), SliceSettings(), Temperature(), "")
    found = {}
    for path in ("lung_ct/labels.csv", "volumes/dicom_ctmd_P001", "volumes/totalseg_example_ct.nii.gz"):
        listing = list_source(root / path, SourceSettings(labelled=False))
        for each in predict_studies((recipe, network), listing, inference):
            found[path, each.patient] = each
    assert all(each.probabilities and each.slices == 16 for each in found.values())
    png, dicom = found["lung_ct/labels.csv", "ctmd-P001"], found["volumes/dicom_ctmd_P001", "ctmd-P001"]
    np.testing.assert_allclose(png.probabilities, dicom.probabilities, atol=1e-3)


def test_patients_may_be_called_1_and_2(inference: Inference, tmp_path: Path) -> None:
    """As the codes of classes are."""
    for patient in ("1", "2", "57"):
        (tmp_path / "new" / patient).mkdir(parents=True)
        Image.fromarray(np.zeros((30, 30), np.uint8)).save(tmp_path / "new" / patient / "a.png")
    options = PredictOptions(input=str(tmp_path / "new"), out=str(tmp_path / "out.csv"), dry_run=True)
    assert "3 slices in 3 studies" in predict(options, inference, lambda: None).text  # type: ignore[arg-type, return-value]


def test_class_folders_are_not_taken_for_patients(inference: Inference, tmp_path: Path) -> None:
    for name in ("normal/p1", "viral/p2"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "in" / name / "1.png")
    options = PredictOptions(input=str(tmp_path / "in"), out=str(tmp_path / "out.csv"), dry_run=True)

    def unopened() -> Model:
        raise AssertionError("a dry run opens no network")

    with pytest.raises(UserError, match="normal, viral are named like classes"):
        predict(options, inference, unopened)
    below = replace(options, source=SourceSettings(labelled=True))
    assert predict(below, inference, unopened).data["found"] == "folders: 2 slices in 2 studies"


def test_a_model_of_an_earlier_raymed_is_read_and_answers_as_it_did_with_a_note_where_slices_are_few(
    model: Model, prepared: Prepared, inference: Inference, folders: Path, tmp_path: Path
) -> None:
    """Its temperature knew no number of slices: the logits of each were divided by it."""
    values = json.loads(inference.to_json()) | {"temperature": 1.7, "calibrated_slices": 2}
    (tmp_path / "inference.json").write_text(json.dumps(values))
    inference = Inference.read(tmp_path / "inference.json")
    listing = list_source(folders, SourceSettings(labelled=False))
    logits, found = predict_rows(model, prepared, chosen_rows(prepared, "test", None, inference.slices))
    for each in predict_studies(model, listing, inference):
        mine = softmax(logits[found["patient"] == each.patient], 1.7).mean(axis=0)
        np.testing.assert_allclose(each.probabilities, mine, atol=1e-6)
    listing = list_source(folders, SourceSettings(labelled=False))
    fitted = replace(inference, calibrated_slices=1)
    assert not any("temperature" in note for one in predict_studies(model, listing, fitted) for note in one.notes)
    fitted = replace(inference, calibrated_slices=1000)
    judged = [one for one in predict_studies(model, listing, fitted) if one.probabilities is not None]
    assert judged and all("may be too sure" in one.notes[0] for one in judged)
