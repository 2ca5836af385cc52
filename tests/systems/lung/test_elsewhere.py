"""An InternVL that was trained elsewhere is judged, asked and compared like one that was trained here."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import script
from PIL import Image

from raymed.data.labels import LabelTable
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.models.internvl import InternVLClassifier
from raymed.models.internvl_weights import write_remote_code
from raymed.models.settings import ModelSettings
from raymed.registry.candidate import Candidate
from raymed.systems.lung.elsewhere import plain_internvl
from raymed.systems.lung.recipe import LungRecipe
from raymed.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def recipe(prepared: Prepared) -> LungRecipe:
    return LungRecipe.for_data(LabelTable.open("lung"), prepared.size, ModelSettings(preset="internvl-tiny"))


@pytest.fixture(scope="module")
def network(recipe: LungRecipe) -> InternVLClassifier:
    torch.manual_seed(0)
    built = recipe.build().eval()
    assert isinstance(built, InternVLClassifier)
    return built


@pytest.fixture(scope="module", params=["native", "internvl"])
def trained_elsewhere(
    request: pytest.FixtureRequest, network: InternVLClassifier, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as another program leaves it: weights, configuration and tokenizer, and nothing of raymed's."""
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint-2000"
    folder.mkdir()
    if request.param == "native":
        network.export(folder)
    else:
        write_remote_code(network.network.state_dict(), network.network.config, folder)
        network.tokenizer.save_pretrained(folder)
    return folder


def test_it_is_judged_as_the_same_weights_are_that_were_trained_here(
    prepared: Prepared, recipe: LungRecipe, network: InternVLClassifier, trained_elsewhere: Path, tmp_path: Path
) -> None:
    recipe.export(network, tmp_path / "here")
    job = script("evaluate_lung")
    outcomes = [
        job.main(job.Evaluate(model=str(model), data=prepared.folder.uri, storage=str(tmp_path / "runs"), bootstrap=10))
        for model in (trained_elsewhere, tmp_path / "here")
    ]
    elsewhere, here = (outcome.data["evaluation"]["metrics"]["loss"]["value"] for outcome in outcomes)
    assert elsewhere == pytest.approx(here, rel=1e-5)
    assert (
        "was trained elsewhere: asked <cls>: 0|1|2|3. (0 normal, 1 bacterial, 2 viral, 3 pneumocystis)" in outcomes[0].text
    )


def test_numbers_of_slices_and_ways_to_decide_are_compared_with_it(
    prepared: Prepared, trained_elsewhere: Path, tmp_path: Path
) -> None:
    job = script("compare_slices")
    outcome = job.main(
        job.CompareSlices(
            model=str(trained_elsewhere),
            data=prepared.folder.uri,
            per_patient=[2, 0],
            storage=str(tmp_path / "runs"),
            bootstrap=10,
        )
    )
    assert [each["slices"] for each in outcome.data["choices"]] == [2] * 3 + [0] * 3
    assert all(each["more_accurate"]["low"] is not None for each in outcome.data["choices"][1:])
    assert "was trained elsewhere: asked <cls>: 0|1|2|3." in outcome.text


def test_it_is_promoted_with_a_card_that_claims_nothing_of_its_training(
    prepared: Prepared, trained_elsewhere: Path, tmp_path: Path
) -> None:
    job, promote, evaluate = (script(name) for name in ("import_lung", "promote", "evaluate_lung"))
    places = {"storage": str(tmp_path / "runs")}
    first, again = (
        job.main(job.ImportLung(model=str(trained_elsewhere), data=prepared.folder.uri, **places)).data["run_id"]
        for _ in range(2)
    )
    assert first == again
    outcome = promote.main(promote.Promote(run_id=first, bootstrap=10, licence="Of its owner.", **places))
    assert outcome.data["model"] == "models:/raymed-lung@champion" and "3 test patients" in outcome.text
    tracker = Tracker.open(f"sqlite:///{tmp_path}/runs/mlflow.db")
    card = str(tracker.client.get_model_version("raymed-lung", outcome.data["version"]).description)
    assert "**Trained elsewhere, nobody here knows on whom.**" in card
    assert "Trained on pictures" not in card and "train 18" not in card.split("Checked again")[0]
    assert "Judged on pictures of this kind: 24 whose files do not say what they show." in card
    judged = evaluate.main(evaluate.Evaluate(model=outcome.data["model"], data=prepared.folder.uri, bootstrap=10, **places))
    assert any("not noted who trained" in note for note in judged.data["notes"])
    network = Path(Candidate.of_run(tracker, first).checkpoint) / "model"
    with pytest.raises(UserError, match=r"was trained here: give jobs/promote.py"):
        job.main(job.ImportLung(model=str(network), data=prepared.folder.uri, **places))


def test_patients_are_predicted_with_it(trained_elsewhere: Path, tmp_path: Path) -> None:
    folder = tmp_path / "patients" / "a"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.fromarray(np.full((40, 40), 60 * number + 40, np.uint8)).save(folder / f"{number}.png")
    job = script("predict_lung")
    out = tmp_path / "predictions.csv"
    job.main(
        job.PredictLung(model=str(trained_elsewhere), input=str(folder.parent), out=str(out), storage=str(tmp_path / "runs"))
    )
    with out.open(newline="", encoding="utf-8-sig") as file:
        (line,) = csv.DictReader(file)
    assert (line["patient_id"], line["slices"], line["model"]) == ("a", "2", str(trained_elsewhere))
    assert sum(float(value) for name, value in line.items() if name.startswith("p_")) == pytest.approx(1)


def test_a_folder_of_this_programs_own_is_not_taken_for_one(
    recipe: LungRecipe, network: InternVLClassifier, tmp_path: Path
) -> None:
    recipe.export(network, tmp_path)
    assert plain_internvl(str(tmp_path)) is None
    assert plain_internvl("models:/raymed-lung@champion") is None


def test_a_folder_without_a_model_is_still_refused_in_words(prepared: Prepared, tmp_path: Path) -> None:
    job = script("evaluate_lung")
    with pytest.raises(UserError, match="is not a model"):
        job.main(job.Evaluate(model=str(tmp_path), data=prepared.folder.uri, storage=str(tmp_path / "runs")))
