"""What is registered must be judged on held-out patients, self-contained, and registered once."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_prepared
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

from raymed.compat.mlflow import MODEL_VERSIONS, PARENT
from raymed.data.plan import SliceSettings
from raymed.data.prepared import MissingError, Prepared
from raymed.errors import CommonError, RunError, UserError
from raymed.evaluation.calibration import Temperature, fit_temperature
from raymed.evaluation.known_patients import KnownPatients
from raymed.evaluation.metrics import evaluate
from raymed.evaluation.patients import Patients, softmax
from raymed.evaluation.predict import predict_rows
from raymed.recipes.exported import open_model
from raymed.registry.address import WHO_IS_UNKNOWN, resolve_model
from raymed.registry.alias import (
    CHAMPION,
    against,
    alias_version,
    give_alias,
    known_by,
    move_alias,
    require_alias,
    seen_version,
)
from raymed.registry.assessment import AssessmentSettings, CardFacts
from raymed.registry.candidate import FOLDER, Candidate, Refit
from raymed.registry.loss_assessment import LossAssessment
from raymed.registry.patient_assessment import PatientAssessment
from raymed.registry.promotion import Promotion
from raymed.registry.register import KEY, Registered, _version, assess_and_register
from raymed.storage.folder import Folder
from raymed.storage.seal import SEAL
from raymed.systems.toy import recipe
from raymed.systems.toy.recipe import ToyRecipe
from raymed.tracking.tracker import Tracker
from raymed.training.checkpoint import PREDICTIONS, Progress, new_name
from raymed.training.checkpoint import seal as seal_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Enough validation patients to fit a temperature on."""
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", patients=176, slices=3)


@pytest.fixture(autouse=True)
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what tests register themselves: those of `registered` are enough, and all others take seconds."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: Path(file).touch())


def checkpoint(data: Prepared, folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    made = ToyRecipe.for_data(data.labels, data.size)
    made.export(made.build(), folder / "model")
    return str(folder)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker.open(f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db", "raymed-toy")


@pytest.fixture(scope="module")
def candidate(tracker: Tracker, data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    folder = tmp_path_factory.mktemp("trial")
    run = tracker.run("search/trial-1", "trial-1", parent=tracker.run("search", "search"))
    tracker.input(run, "search", data.digest, data.folder.uri, "training")
    made = Candidate(run, checkpoint(data, folder / "step-1", 0), data.folder.uri, None, SliceSettings(2), 0)
    tracker.tags(run, made.tags())
    return made


@pytest.fixture(scope="module")
def registered(tracker: Tracker, candidate: Candidate) -> Registered:
    return assess_and_register(tracker, candidate, how=AssessmentSettings(bootstrap=50))


def test_a_candidate_is_read_back_from_its_run(tracker: Tracker, candidate: Candidate) -> None:
    assert Candidate.of_run(tracker, candidate.run_id) == candidate
    folded = replace(candidate, fold=2)
    tracker.tags(tracker.run("folded", "folded"), folded.tags())
    assert Candidate.of_run(tracker, tracker.run("folded", "folded")).fold == 2


def test_a_run_without_a_checkpoint_is_refused_by_name(tracker: Tracker) -> None:
    parent = tracker.run("search", "search")
    with pytest.raises(UserError, match=r"search, RUNNING\) has no tag raymed.checkpoint(?s:.*)one of the search's trials"):
        Candidate.of_run(tracker, parent)
    with pytest.raises(UserError, match="leave --step out"):
        Candidate.of_run(tracker, parent, 8)


def test_a_run_is_judged_by_the_slices_it_was_trained_on_before_it_is_registered(
    tracker: Tracker, candidate: Candidate
) -> None:
    run = tracker.run("unregistered", "unregistered")
    tracker.tags(run, candidate.tags())
    resolved = resolve_model(f"runs:/{run}", tracker)
    assert resolved.inference is None and resolved.slices == candidate.slices != SliceSettings()
    notes = resolved.notes(candidate.open_data(), np.array([]))
    assert any("2 slices of each patient" in note for note in notes)


def test_the_checkpoint_of_a_step_is_taken_where_it_is_named(tracker: Tracker, candidate: Candidate, tmp_path: Path) -> None:
    for step, saved in ((4, 1), (8, 2), (8, 3)):
        checkpoint = tmp_path / "run" / new_name(step, saved)
        checkpoint.mkdir(parents=True)
        (checkpoint / "sealed-000.json").touch()
    (tmp_path / "run" / new_name(8, 4)).mkdir()  # of a process that was killed
    run = tracker.run("stepped", "stepped", tags={FOLDER: Folder.at(tmp_path / "run").uri})
    tracker.tags(run, replace(candidate, checkpoint="").tags())
    assert "/step-00000008-000003-" in Candidate.of_run(tracker, run, 8).checkpoint, "the last one of it"
    with pytest.raises(UserError, match=r"no checkpoint of step 6 in .* which holds step-00000004-000001-"):
        Candidate.of_run(tracker, run, 6)
    with pytest.raises(
        UserError, match=r"before its first validation.*promote.py \w+ --step 8; it is .*step-00000008-000003-"
    ):
        Candidate.of_run(tracker, run)


def test_a_network_that_was_never_validated_is_not_registered_by_a_loss_that_nobody_knows(
    candidate: Candidate, data: Prepared, tmp_path: Path
) -> None:
    folder = tmp_path / new_name(8, 1)
    folder.mkdir()
    Progress(global_step=8).write(folder)
    with pytest.raises(UserError, match=r"step-00000008.* before the first validation.*as it is: use .*step-00000008"):
        LossAssessment.of(replace(candidate, checkpoint=str(folder)), data, "", "use {model}")


def test_a_run_of_an_earlier_raymed_is_told_from_a_search(tracker: Tracker, candidate: Candidate) -> None:
    earlier = tracker.run("earlier", "earlier")
    tracker.tags(earlier, {name: value for name, value in candidate.tags().items() if name != "raymed.data_digest"})
    with pytest.raises(UserError, match="is of an earlier raymed"):
        Candidate.of_run(tracker, earlier)


def test_the_test_split_is_judged_with_the_temperature_of_validation(
    registered: Registered, candidate: Candidate, data: Prepared
) -> None:
    assessment = registered.assessment
    model = open_model(Path(candidate.checkpoint) / "model")
    two_of_three = {split: data.rows(split).reshape(-1, 3)[:, [0, 2]].ravel() for split in ("val", "test")}
    logits, columns = predict_rows(model, data, two_of_three["val"])
    assert assessment.temperature == fit_temperature(logits, columns["patient"], columns["label"]) != Temperature()
    logits, columns = predict_rows(model, data, two_of_three["test"])
    means = assessment.temperature.scale(softmax(logits).reshape(-1, 2, 4).mean(axis=1), np.full(22, 2))
    loss = -np.log(means[np.arange(len(means)), columns["label"][::2]]).mean()
    assert assessment.test is not None and assessment.test.patients == 22
    assert assessment.test.metrics["loss"].value == pytest.approx(loss, abs=1e-6)


def test_registering_again_finds_the_version_and_other_weights_make_a_new_one(
    tracker: Tracker, registered: Registered, candidate: Candidate, data: Prepared, tmp_path: Path
) -> None:
    assert registered.uri == "models:/raymed-toy@champion"
    assert assess_and_register(tracker, candidate, how=AssessmentSettings(bootstrap=50)).version == registered.version
    refit = Refit(checkpoint(data, tmp_path / "refit", 1), ("train", "val"))
    again = assess_and_register(tracker, candidate, alias="refitted", refit=refit, how=AssessmentSettings(bootstrap=50))
    assert again.version != registered.version
    weights = [resolve_model(each.uri, tracker).network / "model.safetensors" for each in (registered, again)]
    assert weights[0].read_bytes() == (Path(candidate.checkpoint) / "model/model.safetensors").read_bytes()
    assert weights[1].read_bytes() == (Path(refit.checkpoint) / "model/model.safetensors").read_bytes()
    card = tracker.client.get_model_version(again.name, again.version).description
    assert card and "belong to the model before refitting" in card and "train + val" in card
    tags = tracker.client.get_model_version(again.name, again.version).tags
    assert tags["figures_of"] == "before_refit" and "figures_of" not in version_tags(tracker, registered)
    named = json.dumps([{"name": again.name, "version": again.version}])
    models = tracker.client.search_logged_models([tracker.experiment_id], f"tags.`mlflow.modelVersions` = '{named}'")
    assert len(models) == 1 and not models[0].metrics, "figures of another network are not this one's"
    assert str(tracker.client.get_model_version_by_alias("raymed-toy", "champion").version) == registered.version
    tests = data.columns(data.rows("test"), ["patient"])["patient"]
    assert resolve_model(registered.uri, tracker).notes(data, tests) == []
    everything = Refit(refit.checkpoint, ("train", "val", "test"))
    assess_and_register(tracker, candidate, alias="everything", refit=everything, how=AssessmentSettings(bootstrap=50))
    notes = resolve_model("models:/raymed-toy@everything", tracker).notes(data, tests)
    assert notes == ["the model was trained on 22 of these 22 patients: the figures flatter it"]


def test_the_temperature_of_a_refit_is_that_of_networks_that_had_not_seen_whom_they_were_asked_about(
    tracker: Tracker, registered: Registered, candidate: Candidate, data: Prepared, tmp_path: Path
) -> None:
    folds, rows = [], [data.rows("val", fold) for fold in range(data.folds)]
    for fold, own in enumerate(rows):
        folder = tmp_path / f"fold-{fold}"
        folder.mkdir()
        logits = 4 * np.random.default_rng(fold).normal(size=(len(own), 4)).astype(np.float32)  # too sure
        np.savez(folder / PREDICTIONS, row=own, logits=logits)
        seal_checkpoint(folder, 0, 1)
        folds.append(str(folder))
    refit = Refit(checkpoint(data, tmp_path / "refit", 3), ("train", "val"), tuple(folds))
    again = assess_and_register(tracker, candidate, alias="crossed", refit=refit, how=AssessmentSettings(bootstrap=20))
    inference = resolve_model(again.uri, tracker).inference
    assert isinstance(registered.assessment, PatientAssessment) and inference is not None
    assert inference.temperature.one > 3 > registered.assessment.temperature.one
    for name in ("temperature", "test_accuracy", "test_loss"):
        assert again.assessment.figures()[name] == registered.assessment.figures()[name], "figures stay the judged one's"
    assert f"cross-fitted: {data.folds} networks" in again.card and "cross-fitted" not in registered.card


def version_tags(tracker: Tracker, registered: Registered) -> dict[str, str]:
    tags: dict[str, str] = tracker.client.get_model_version(registered.name, registered.version).tags
    return tags


def test_a_model_says_how_many_of_the_patients_it_is_judged_on_it_knows_whatever_the_split_is_called(
    tracker: Tracker, registered: Registered, candidate: Candidate, data: Prepared
) -> None:
    def notes(split: str, fold: int | None = None) -> list[str]:
        patients = data.columns(data.rows(split, fold), ["patient"])["patient"]
        return resolve_model(registered.uri, tracker).notes(data, patients)

    trained, count = set(ids(data, "train")), len(set(ids(data, "val", 0)))
    known = len(trained & set(ids(data, "val", 0)))
    assert known > 0
    assert f"trained on {known} of these {count} patients" in notes("val", 0)[0]  # of the stored split, on a fold
    assert len(notes("val")) == 1 and "chose the model" in notes("val")[0]
    assert "trained on" in notes("all")[0] and "chose the model" in notes("all")[1]
    folded = KnownPatients.of("k", ids(data, "train", 0), ids(data, "val", 0))
    assert len(folded.notes(ids(data, "val", 0))) == 1 and "chose" in folded.notes(ids(data, "val", 0))[0]
    assert WHO_IS_UNKNOWN.format(unit="patient") in resolve_model(candidate.checkpoint, tracker).notes(
        data, ids(data, "train")
    )
    nobodys = replace(data, manifest=replace(data.manifest, patients_known=False))
    assert "figures count images" in resolve_model(registered.uri, tracker).notes(nobodys, ids(data, "test"))[0]
    one_more = replace(data, manifest=replace(data.manifest, digest="other"))
    assert "trained on" in resolve_model(registered.uri, tracker).notes(one_more, ids(data, "train"))[0]


def test_the_page_warns_of_what_holds_and_of_nothing_else(registered: Registered, data: Prepared) -> None:
    assessment = registered.assessment
    assert isinstance(assessment, PatientAssessment) and assessment.test is not None
    untrained = assessment.notes(None)
    assert not assessment.test.beats_majority and any("than always answering" in note for note in untrained)
    assert not any("nobody said" in note.lower() or "trained again" in note for note in untrained)
    labels = np.repeat(np.arange(4), 20)
    right = Patients(
        np.arange(80).astype(str), labels, softmax(4.0 * np.eye(4)[labels]), np.ones(80, np.int64), np.full(80, "", object)
    )
    good = replace(assessment, test=evaluate(right, data.labels.names, bootstrap=5))
    assert len(good.notes(None)) == 1
    unknown = replace(good, prepared=replace(data, manifest=replace(data.manifest, patients_known=False)))
    assert unknown.notes(None)[0].startswith("Nobody said whose the pictures are")
    assert "trained again on train + val" in good.notes(Refit("", ("train", "val")))[0]


def ids(data: Prepared, split: str, fold: int | None = None) -> np.ndarray:
    patients: np.ndarray = data.columns(data.rows(split, fold), ["patient"])["patient"]
    return patients


def test_the_card_counts_the_models_that_these_test_patients_have_judged(
    tracker: Tracker, candidate: Candidate, tmp_path: Path, data: Prepared
) -> None:
    before = assess_and_register(tracker, candidate, how=AssessmentSettings(bootstrap=50)).facts.looks
    again = assess_and_register(tracker, candidate, how=AssessmentSettings(bootstrap=50))
    assert again.facts.looks == before, "the same model again is no other look"
    run = tracker.run("looks", "looks")
    other = replace(candidate, run_id=run, checkpoint=checkpoint(data, tmp_path / "other", 7))
    tracker.tags(run, other.tags())
    again = assess_and_register(tracker, other, alias="other", how=AssessmentSettings(bootstrap=50))
    assert again.facts.looks == before + 1
    card = tracker.client.get_model_version(again.name, again.version).description
    assert card and f"have judged {before + 1} models so far" in card


def test_a_licence_reaches_the_card_of_a_version_that_is_there(
    tracker: Tracker, registered: Registered, candidate: Candidate
) -> None:
    assess_and_register(tracker, candidate, licence="CC BY 4.0", how=AssessmentSettings(bootstrap=50))
    assert "CC BY 4.0" in str(tracker.client.get_model_version("raymed-toy", registered.version).description)


def test_mlflow_learns_figures_but_no_patient(
    tracker: Tracker, registered: Registered, candidate: Candidate, data: Prepared
) -> None:
    record, version = tracker.describe(candidate.run_id), tracker.client.get_model_version("raymed-toy", registered.version)
    test = registered.assessment.test
    assert test is not None
    assert record.metrics["test_accuracy"] == test.metrics["accuracy"].value
    assert {
        "test_macro_auc_low",
        "test_sensitivity_viral",
        "calibrated_val_loss",
        "temperature",
        "temperature_one_slice",
    } <= record.metrics.keys()
    files = {each.path for each in tracker.client.list_artifacts(candidate.run_id, "figures")}
    assert {"figures/test_confusion.png", "figures/test_reliability.png", "figures/test_roc.png"} <= files
    single = registered.assessment.single
    assert single is not None and single.count == np.sum(single.confusion) == 44, "two slices of each of 22 test patients"
    assert record.metrics["test_slice_accuracy"] == pytest.approx(np.trace(single.confusion) / 44)
    assert "test_slice_sensitivity_viral" in record.metrics and "figures/test_slices_confusion.png" in files
    assert version.tags["test_accuracy"] == f"{test.metrics['accuracy'].value:.4f}"
    assert version.run_id == candidate.run_id
    root = Path(tracker.uri.removeprefix("sqlite:///")).parent
    patients = {str(patient) for patient in data.columns(data.rows("test"), ["patient"])["patient"]}
    named = re.compile(rf"\b({'|'.join(map(re.escape, sorted(patients)))})\b".encode())
    texts = [path for path in root.rglob("*") if path.suffix in (".md", ".json", ".db", ".yaml") or path.name == "MLmodel"]
    assert len(texts) > 5
    assert [path for path in texts if named.search(path.read_bytes())] == []


def test_the_model_is_on_the_pages_of_its_run_and_of_its_search_with_figures_on_its_data(
    tracker: Tracker, registered: Registered, candidate: Candidate, data: Prepared
) -> None:
    run = tracker.client.get_run(candidate.run_id)
    search = tracker.client.get_run(run.data.tags[PARENT])
    shown = [{each.model_id for each in owner.outputs.model_outputs} for owner in (run, search)]
    assert shown[0] == shown[1]
    models = {each.tags["mlflow.modelVersions"]: each for each in map(tracker.client.get_logged_model, shown[0])}
    model = models[json.dumps([{"name": registered.name, "version": registered.version}])]
    assert model.source_run_id == candidate.run_id and model.status == "READY"
    figures = {metric.key: metric for metric in model.metrics}
    assert figures["test_loss"].value == pytest.approx(registered.assessment.figures()["test_loss"])
    assert figures["test_loss"].dataset_digest == data.digest[:36]
    assert run.data.metrics["test_loss"] == figures["test_loss"].value


def test_the_local_predictions_name_every_judged_patient(registered: Registered) -> None:
    lines = list(csv.DictReader(io.StringIO(registered.assessment.files()["patients.csv"].decode("utf-8-sig"))))
    assert {line["split"] for line in lines} == {"val", "test"} and len(lines) == 44
    for line in lines:
        shares = {name: float(line[f"p_{name}"]) for name in ("normal", "bacterial", "viral", "pneumocystis")}
        assert line["decision"] == max(shares, key=lambda name: shares[name])
        assert sum(shares.values()) == pytest.approx(1)
        assert line["slices"] == "2"


def test_the_hardest_patients_come_with_the_slices_that_were_judged(registered: Registered, data: Prepared) -> None:
    assessment = registered.assessment
    assert isinstance(assessment, PatientAssessment)
    hardest = assessment.hardest(count=3)
    patients = assessment.test_patients
    assert patients is not None
    own = patients.probabilities[np.arange(len(patients.ids)), patients.labels]
    assert [each.probabilities[each.label] for each in hardest] == sorted(own)[:3]
    for each in hardest:
        records = [record for record in data.read(data.rows("test")) if record.patient == each.id]
        np.testing.assert_array_equal(each.slices, [records[place].images[0].pixels for place in (0, 2)])


def test_every_way_to_name_the_model_opens_the_same_weights(
    tracker: Tracker, registered: Registered, candidate: Candidate
) -> None:
    served = resolve_model("models:/raymed-toy@champion", tracker)
    assert served.inference is not None and served.inference.slices == candidate.slices
    folder = str(served.network.parents[1])
    uris = [f"models:/raymed-toy/{registered.version}", folder, candidate.checkpoint]
    weights = {(resolve_model(uri, tracker).network / "model.safetensors").read_bytes() for uri in uris}
    assert weights == {(served.network / "model.safetensors").read_bytes()}
    assert resolve_model(candidate.checkpoint, tracker).inference is None
    bare = resolve_model(f"runs:/{tracker.run('not promoted', 'not promoted', tags=candidate.tags())}", tracker)
    assert {(bare.network / "model.safetensors").read_bytes()} == weights and bare.inference is None
    assert resolve_model(f"runs:/{candidate.run_id}", tracker).inference is not None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/raymed-toy@nobody", "there is no models:/raymed-toy@nobody"),
        ("models:/other/1", "Registered models: raymed-toy"),
        ("models:/raymed-toy", "names no model version"),
        ("runs:/nonsense", "there is no run 'nonsense'"),
        ("no/such/folder", "is not a model"),
    ],
)
def test_a_model_that_is_not_there_is_a_clear_error(
    uri: str, message: str, tracker: Tracker, registered: Registered
) -> None:
    with pytest.raises(UserError, match=message):
        resolve_model(uri, tracker)


def test_a_lost_checkpoint_is_a_clear_error(tracker: Tracker, candidate: Candidate, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there any more"):
        assess_and_register(tracker, replace(candidate, checkpoint=str(tmp_path / "gone")))


def test_a_checkpoint_that_a_run_left_in_a_hurry_says_how_to_get_one_that_can_be_used(
    tracker: Tracker, candidate: Candidate, tmp_path: Path
) -> None:
    left = tmp_path / "step-00000008-000001-ab12cd34"
    left.mkdir()
    Progress(global_step=8).write(left)
    (left / "model").mkdir()
    (left / "model" / "model.safetensors").write_bytes(b"of a network that was cut off on its way")
    for ask in (
        lambda: assess_and_register(tracker, replace(candidate, checkpoint=str(left))),
        lambda: resolve_model(str(left), tracker),
    ):
        with pytest.raises(
            UserError, match=r"step-00000008-\S+ was saved by a run that was ended while it left.* command again"
        ):
            ask()


ALONE = """
import sys
sys.path = [path for path in sys.path if path not in ("", {repo!r})]
sys.meta_path = [each for each in sys.meta_path if "editable" not in repr(each)]
try:
    import raymed
    sys.exit("raymed is importable without the model")
except ModuleNotFoundError:
    pass
import mlflow, numpy, pandas
model = mlflow.pyfunc.load_model({folder!r})
slices = numpy.zeros((4, 28, 28), numpy.uint8)
print(model.predict(pandas.DataFrame({{"patient_id": ["a"], "image": [slices]}})).to_json(orient="records"))
import raymed
assert raymed.__file__.startswith({folder!r}), raymed.__file__
assert "ray" not in sys.modules and "deepspeed" not in sys.modules
"""


@pytest.mark.slow
def test_the_registered_model_needs_neither_raymed_nor_ray_nor_deepspeed(
    tracker: Tracker, registered: Registered, tmp_path: Path
) -> None:
    folder, repo = str(resolve_model(registered.uri, tracker).network.parents[1]), str(Path(__file__).parents[2])
    room = Path(recipe.__file__).parent  # of the tests, so that no model brings it
    shutil.copytree(room, Path(folder, "code", "raymed", "systems", room.name))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(repo=repo, folder=folder)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '"patient_id":"a"' in done.stdout and '"slices":2' in done.stdout


def test_a_network_judged_by_its_validation_loss_is_registered_once_as_it_is(
    tracker: Tracker, candidate: Candidate, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(candidate, seed=7)
    loss = LossAssessment(other, data, 1.25, "A lower loss does not prove a better one.", "use {model} of {tracking}")
    monkeypatch.setattr(ToyRecipe, "assess", lambda *_: loss)
    first, again = (assess_and_register(tracker, other, "backbone", found_by="Picked.") for _ in range(2))
    assert (first.uri, first.version) == (again.uri, again.version) and first.uri == "models:/raymed-toy@backbone"
    version = tracker.client.get_model_version("raymed-toy", first.version)
    assert version.tags["val_loss"] == "1.2500" and version.description == first.card
    assert "Picked.\n\nA lower loss does not prove" in first.card and "no patient" in first.card
    found = resolve_model(first.uri, tracker)
    assert found.inference is None and open_model(found.network)[0].name == "toy"
    assert first.assessment.next_step(first.uri, "sqlite:///x") == "use models:/raymed-toy@backbone of sqlite:///x"


WRITES = re.compile(r"(create|set|log|update|delete|finalize)_")


@pytest.fixture
def only_its_loss(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is judged by its validation loss, which takes no time."""
    monkeypatch.setattr(ToyRecipe, "assess", lambda _, judged, *__: LossAssessment(judged, data, 1.25, "", "use {model}"))


def left_of(tracker: Tracker, made: Registered) -> tuple[list[str], list[tuple[str, str]]]:
    """What MLflow has of a model: its versions, and the state of each logged model with the versions that its page names."""
    is_its = f"tags.`{KEY}` = '{made.facts.name.rpartition('-')[2]}'"
    versions = tracker.client.search_model_versions(f"name = '{made.name}' and {is_its}")
    models = tracker.client.search_logged_models([tracker.experiment_id], is_its)
    return [str(each.version) for each in versions], [
        (str(each.status), each.tags.get(MODEL_VERSIONS, "")) for each in models
    ]


def once(made: Registered) -> tuple[list[str], list[tuple[str, str]]]:
    """What one registration leaves; see `left_of`."""
    return [made.version], [("READY", json.dumps([{"name": made.name, "version": made.version}]))]


@pytest.mark.slow
@pytest.mark.usefixtures("only_its_loss")
def test_a_registration_that_is_killed_between_any_two_writes_is_completed_by_the_same_command(
    tracker: Tracker, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def register(seed: int, last: float = math.inf) -> Registered:
        """Killed before another write follows the `last`."""
        done.clear()

        def counted(name: str, real: Any) -> Any:
            def write(*arguments: Any, **settings: Any) -> Any:
                if len(done) >= last:
                    raise SystemExit("killed")
                done.append(name)
                return real(*arguments, **settings)

            return write

        with monkeypatch.context() as patch:
            for name in filter(WRITES.match, dir(tracker.client)):
                patch.setattr(tracker.client, name, counted(name, getattr(tracker.client, name)))
            return assess_and_register(tracker, replace(candidate, seed=seed), "cut-short")

    register(1000)
    assert {"create_model_version", "set_logged_model_tags", "set_registered_model_alias"} <= {*done}
    for last in range(len(done)):
        with pytest.raises(SystemExit):
            register(1001 + last, last)
        again = register(1001 + last)
        assert left_of(tracker, again) == once(again), f"killed after {last} writes"
        assert alias_version(tracker, "raymed-toy", "cut-short") == again.version


@pytest.mark.usefixtures("only_its_loss")
@pytest.mark.parametrize(
    ("what", "is_repeated"), [("model_version", True), ("model_version", False), ("logged_model", True)]
)
def test_a_creation_whose_answer_was_lost_leaves_one_version_of_one_model(
    tracker: Tracker, candidate: Candidate, monkeypatch: pytest.MonkeyPatch, what: str, is_repeated: bool
) -> None:
    """MLflow's client repeats it by itself, and gives up in the end."""
    create = getattr(tracker.client, f"create_{what}")

    def losing(*arguments: Any, **settings: Any) -> Any:
        create(*arguments, **settings)
        if not is_repeated:
            raise MlflowException("the answer was lost")
        return create(*arguments, **settings)

    monkeypatch.setattr(tracker.client, f"create_{what}", losing)
    seed = 2000 + len(what) + is_repeated
    made = assess_and_register(tracker, replace(candidate, seed=seed), "answered")
    assert left_of(tracker, made) == once(made)


@pytest.mark.usefixtures("only_its_loss")
def test_a_version_that_mlflow_does_not_make_is_an_error(
    tracker: Tracker, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **settings: Any) -> None:
        raise MlflowException("the server is away")

    monkeypatch.setattr(tracker.client, "create_model_version", refused)
    with pytest.raises(MlflowException, match="is away"):
        assess_and_register(tracker, replace(candidate, seed=3000), "none")


def test_a_network_that_is_damaged_or_whose_own_list_is_gone_or_exchanged_is_refused(
    candidate: Candidate, data: Prepared, tmp_path: Path
) -> None:
    saved = Path(checkpoint(data, tmp_path / "saved", 5))
    seal_checkpoint(saved, 0, 1)
    own, content = saved / "model" / SEAL, (saved / "model" / SEAL).read_bytes()
    assert (candidate.fetch(str(saved), tmp_path / "whole") / SEAL).read_bytes() == content
    weights = saved / "model" / "model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model.safetensors is missing, damaged or exchanged"):
        candidate.fetch(str(saved), tmp_path / "flipped")
    weights.write_bytes(intact)
    own.write_bytes(content.replace(b" ", b"  "))
    with pytest.raises(UserError, match=r"model/sealed.json is missing or damaged.*Choose another trial"):
        candidate.fetch(str(saved), tmp_path / "exchanged")
    own.unlink()
    with pytest.raises(UserError, match=r"model/sealed.json is missing or damaged"):
        candidate.fetch(str(saved), tmp_path / "gone")
    (saved / "sealed-000.json").unlink()  # as of a network that no run saved
    assert candidate.fetch(str(saved), tmp_path / "unsealed")


def test_a_dry_run_of_promoting_opens_no_other_data(tracker: Tracker, candidate: Candidate) -> None:
    promotion = Promotion(tracker, candidate, None, "")
    assert "dry run" in promotion.describe().text
    with pytest.raises(CommonError, match="was prepared again"):
        replace(promotion, candidate=replace(candidate, data_digest="other")).describe()


def test_the_card_of_a_refit_says_that_the_loss_is_another_networks_and_who_trained_its_own(
    candidate: Candidate, data: Prepared
) -> None:
    loss = LossAssessment(candidate, data, 1.25, "", "")
    facts = CardFacts("raymed-toy-1", "Found.", {"recipe": "toy"}, "train 8 patients")
    assert "refit" not in loss.card(facts)
    again = loss.card(replace(facts, refit=Refit("checkpoint", ("train", "val"))))
    assert "before refitting" in again and "trained again on every patient of train + val" in again


def test_what_a_limit_left_out_is_said_in_the_card_and_it_becomes_no_champion_unasked(
    tracker: Tracker, registered: Registered, candidate: Candidate, data: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    limited = replace(candidate, slices=SliceSettings(2, limit=12))
    first = assess_and_register(tracker, limited, how=AssessmentSettings(bootstrap=20))
    assert first.uri == f"models:/raymed-toy/{first.version}"
    assert "under no alias: a limit left some out of training" in caplog.text
    assert str(tracker.client.get_model_version_by_alias("raymed-toy", "champion").version) == registered.version
    card = str(tracker.client.get_model_version("raymed-toy", first.version).description)
    assert "**Trained on a limit, as for a first try**: train 12 of 132 patients (24 records), val 12 of 22" in card
    assert " of 33 (" in card and "| 33 (" not in card, "each class says how many of its train patients were used"
    whole = str(tracker.client.get_model_version("raymed-toy", registered.version).description)
    assert "Trained on a limit" not in whole and "| 33 (66) |" in whole
    assert (
        "grey values as in the files: no window of ours" in whole
        and "Trained on pictures of this kind: 264 whose files do not say what they show." in whole
    )
    again = assess_and_register(tracker, limited, alias="candidate", how=AssessmentSettings(bootstrap=20))
    assert (again.uri, again.version) == ("models:/raymed-toy@candidate", first.version)


def test_a_search_moves_the_alias_only_from_the_version_that_it_saw(
    tracker: Tracker, candidate: Candidate, caplog: pytest.LogCaptureFixture
) -> None:
    """A person's promotion, or that of another search, is not undone; a search that is run again moves nothing back."""
    name, client = "raymed-moved", tracker.client
    assert alias_version(tracker, name) == ""
    client.create_registered_model(name)
    for number in range(3):
        client.create_model_version(name, f"file:///{number}")
    assert give_alias(tracker, candidate, name, "1", None, "") == f"models:/{name}@champion"
    assert give_alias(tracker, candidate, name, "2", None, "1") == f"models:/{name}@champion"
    assert give_alias(tracker, candidate, name, "3", None, "1") == f"models:/{name}/3"
    assert alias_version(tracker, name) == "2"
    assert "champion stays version 2" in caplog.text and "promote.py" in caplog.text
    client.set_registered_model_alias(name, CHAMPION, "1")  # by a person
    assert give_alias(tracker, candidate, name, "2", None, "2") == f"models:/{name}/2"
    assert alias_version(tracker, name) == "1"


def test_a_version_of_a_number_that_is_given_again_is_not_the_one_that_the_search_saw(
    tracker: Tracker, candidate: Candidate
) -> None:
    """MLflow's database was set back to before the search's version, and a person has made theirs champion."""
    name, client = "raymed-anew", tracker.client
    assert seen_version(tracker, name) == ""
    for source in ("file:///ours", "file:///theirs"):
        client.create_registered_model(name)
        client.create_model_version(name, source)
        client.set_registered_model_alias(name, CHAMPION, "1")
        if source == "file:///ours":
            seen = seen_version(tracker, name)
            assert seen == known_by(client.get_model_version(name, "1"))
            client.delete_registered_model(name)
    client.create_model_version(name, "file:///winner")
    assert give_alias(tracker, candidate, name, "2", None, seen) == f"models:/{name}/2"
    assert alias_version(tracker, name) == "1"
    assert give_alias(tracker, candidate, name, "2", None, seen_version(tracker, name)) == f"models:/{name}@champion"


def test_a_version_whose_creation_was_repeated_is_there_once(tracker: Tracker) -> None:
    """Also where a process was killed before it looked; what somebody has given an alias stays."""
    name, client = "raymed-twins", tracker.client
    client.create_registered_model(name)
    for key in ("ours", "ours", "another", "ours"):
        client.create_model_version(name, "file:///made", tags={KEY: key})
    client.set_registered_model_alias(name, "tried", "2")
    assert [_version(tracker, name, "ours") for _ in range(2)] == ["2", "2"], "or the alias would be moved from it"
    assert {int(each.version) for each in client.search_model_versions(f"name = '{name}'")} == {2, 3}
    for _ in range(2):
        client.create_model_version(name, "file:///made", tags={KEY: "another"})
    assert _version(tracker, name, "another") == "3"


def test_a_person_goes_back_to_an_earlier_version_without_judging_it_again(tracker: Tracker) -> None:
    name = "raymed-back"
    tracker.client.create_registered_model(name)
    for number in range(2):
        tracker.client.create_model_version(name, f"file:///{number}")
    tracker.client.set_registered_model_alias(name, CHAMPION, "2")
    tried = move_alias(tracker, f"models:/{name}/1", CHAMPION, is_dry_run=True)
    assert "version 1; before: 2" in tried.text and alias_version(tracker, name) == "2"
    assert "start it again" in move_alias(tracker, f"models:/{name}/1", CHAMPION).text
    assert alias_version(tracker, name) == "1"
    for wrong in (f"models:/{name}/7", "models:/nobody/1", f"models:/{name}@champion"):
        with pytest.raises(UserError, match=r"there is no models:/|names no version"):
            move_alias(tracker, wrong, CHAMPION)
    assert alias_version(tracker, name) == "1"


@pytest.mark.parametrize("alias", ["latest", "LATEST", "v1", "V12", "", "best model", "a@b"])
def test_an_alias_that_mlflow_refuses_is_refused_before_the_night(tracker: Tracker, alias: str) -> None:
    with pytest.raises(UserError, match="--alias"):
        require_alias(alias)
    with pytest.raises(MlflowException):
        tracker.client.set_registered_model_alias("raymed-any", alias, "1")
    for allowed in (None, "champion", "v1-tried", "best_model", "vote"):
        require_alias(allowed)


def test_a_search_leaves_the_alias_to_a_champion_that_it_cannot_be_compared_with(
    tracker: Tracker, candidate: Candidate, data: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its data were prepared again in place: whether the new model is better is not known."""
    quick = AssessmentSettings(bootstrap=20)
    first = rival(tracker, candidate, data, tmp_path, 41, 5.0)
    good = assess_and_register(tracker, first, alias="kept", how=quick)
    tracker.tags(first.run_id, replace(first, data_digest="of before").tags())
    worse = assess_and_register(
        tracker, rival(tracker, candidate, data, tmp_path, 42, 0.0), alias="kept", how=quick, seen=good.version
    )
    assert alias_version(tracker, "raymed-toy", "kept") == good.version
    assert "not comparable with version" in caplog.text and f"promote.py models:/raymed-toy/{worse.version}" in caplog.text


def test_a_storage_that_is_away_for_a_moment_keeps_no_better_model_from_the_alias(
    tracker: Tracker, candidate: Candidate, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, above, looks = AssessmentSettings(bootstrap=20), PatientAssessment.above, list[str]()
    first = assess_and_register(tracker, rival(tracker, candidate, data, tmp_path, 51, 0.0), alias="kept", how=quick)

    def blink(assessment: PatientAssessment, other: Candidate, noted: Any) -> Any:
        looks.append(other.checkpoint)
        if len(looks) == 1:
            raise RunError(f"{other.checkpoint}/predictions.npz is missing or damaged")
        return above(assessment, other, noted)

    monkeypatch.setattr(PatientAssessment, "above", blink)
    better = rival(tracker, candidate, data, tmp_path, 52, 5.0)
    second = assess_and_register(tracker, better, alias="kept", how=quick, seen=first.version)
    assert len(looks) == 2 and alias_version(tracker, "raymed-toy", "kept") == second.version


def test_a_run_that_was_deleted_is_promoted_once_it_is_restored(tracker: Tracker, candidate: Candidate) -> None:
    run = tracker.run("deleted", "deleted")
    tracker.tags(run, candidate.tags())
    tracker.client.delete_run(run)
    with pytest.raises(UserError, match="restore it first"):
        Promotion(tracker, Candidate.of_run(tracker, run), None, "").run(Folder.at("unused"), AssessmentSettings())


def rival(
    tracker: Tracker, candidate: Candidate, data: Prepared, folder: Path, number: int, right: float, run: str = ""
) -> Candidate:
    """A run that gives each validation patient's own class so much more; or another checkpoint of a run."""
    run = run or tracker.run(f"rival-{number}", f"rival-{number}")
    made = replace(candidate, run_id=run, checkpoint=checkpoint(data, folder / str(number), number))
    rows = data.rows("val")
    logits = right * np.eye(4, dtype=np.float32)[data.columns(rows, ["label"])["label"]]
    logits += np.random.default_rng(0).normal(size=logits.shape)
    np.savez(Path(made.checkpoint) / PREDICTIONS, row=rows, logits=logits)
    seal_checkpoint(Path(made.checkpoint), 0, 1)
    if not tracker.describe(run).tags.get("raymed.checkpoint"):
        tracker.tags(run, made.tags())
    return made


def test_a_champion_that_is_a_step_of_its_run_is_compared_by_that_step_and_not_by_the_runs_best(
    tracker: Tracker, candidate: Candidate, data: Prepared, tmp_path: Path
) -> None:
    quick = AssessmentSettings(bootstrap=20)
    best = rival(tracker, candidate, data, tmp_path, 21, 5.0)
    step = rival(tracker, candidate, data, tmp_path, 22, 0.0, best.run_id)
    champion = assess_and_register(tracker, step, alias="stepped", how=quick)
    assert version_tags(tracker, champion)["raymed.checkpoint"] == step.checkpoint
    between = rival(tracker, candidate, data, tmp_path, 23, 0.0)
    again = assess_and_register(tracker, between, alias="stepped", how=quick, seen=champion.version)
    assert alias_version(tracker, "raymed-toy", "stepped") == again.version, "beside the run's best it is surely worse"


def test_a_better_model_whose_data_are_away_is_not_taken_for_one_that_cannot_be_compared(
    tracker: Tracker, candidate: Candidate, data: Prepared, tmp_path: Path
) -> None:
    """It never became champion: data and checkpoints may lie in two storages, and one may be away alone."""

    class Away:
        def above(self, *_: object) -> None:
            raise MissingError(f"{lost} is not prepared data")

    better = rival(tracker, candidate, data, tmp_path, 31, 5.0)
    version = assess_and_register(tracker, better, alias="apart", how=AssessmentSettings(bootstrap=20))
    lost = Folder.at(tmp_path / "mount point")
    lost.make()
    with pytest.raises(RunError, match=r"has no alias: .*mount point.* run the same command again"):
        against(tracker, replace(better, data=lost.uri), Away(), "raymed-toy", "0", "apart")  # type: ignore[arg-type]
    assert "not comparable" in against(tracker, better, Away(), "raymed-toy", "0", "apart")  # type: ignore[arg-type]
    assert alias_version(tracker, "raymed-toy", "apart") == version.version


def test_a_search_does_not_hand_the_alias_to_a_model_that_is_surely_worse_and_a_person_may(
    tracker: Tracker, candidate: Candidate, data: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick = AssessmentSettings(bootstrap=20)
    good = assess_and_register(tracker, rival(tracker, candidate, data, tmp_path, 11, 5.0), alias="rival", how=quick)
    with caplog.at_level("INFO", logger="raymed"):
        worse = assess_and_register(
            tracker, rival(tracker, candidate, data, tmp_path, 12, 0.0), alias="rival", how=quick, seen=good.version
        )
    assert worse.uri == f"models:/raymed-toy/{worse.version}"
    assert alias_version(tracker, "raymed-toy", "rival") == good.version
    assert f"against version {good.version} (rival), on the same data" in caplog.text
    assert "surely worse" in caplog.text and "promote.py" in caplog.text
    by_hand = assess_and_register(tracker, rival(tracker, candidate, data, tmp_path, 12, 0.0), alias="rival", how=quick)
    assert alias_version(tracker, "raymed-toy", "rival") == by_hand.version
