"""What a search says of its winner: figures, a page with pictures, and a model that MLflow serves."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from datetime import datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from packed_samples import SIZES, tiny_network
from PIL import Image

from raymed.data.plan import SliceSettings
from raymed.data.usage import Usage
from raymed.errors import UserError
from raymed.evaluation.answer_metrics import answer_guard, score_answers
from raymed.evaluation.picture_metrics import Pictures, score_pictures
from raymed.evaluation.search_summary import DataSummary, SearchSummary, TrialSummary
from raymed.evaluation.text_metrics import Texts
from raymed.registry.address import network_folder
from raymed.registry.assessment import CardFacts
from raymed.registry.candidate import Candidate
from raymed.systems.unimedvl.assessment import CAUTION, THEN, GeneralistAssessment
from raymed.systems.unimedvl.evaluation import Answers, Drawings, Evaluation
from raymed.systems.unimedvl.recipe import UniMedVLRecipe
from raymed.systems.unimedvl.resize import ResizeSettings
from raymed.systems.unimedvl.synthetic import GAP, SETTINGS

PATIENTS = np.array([f"smith{number:02d}" for number in range(12)], dtype=object)
FACTS = CardFacts("raymed-unimedvl-1", "The search s.", {"recipe": "unimedvl", "model": {"path": None}})


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 1), np.uint8)


def evaluation() -> Evaluation:
    """Right answers but for one, and an editor that draws what is wanted."""
    texts = Texts(PATIENTS, ["left", "right"] * 6, ["left", "right"] * 5 + ["left", "left"])
    others = score_answers(Texts(PATIENTS, texts.references, ["both"] * 12))
    scores = score_answers(texts)
    answers = Answers(texts, ["Which?"] * 12, scores, (answer_guard("image shuffle", scores, others, "swapped"),))
    targets = [picture(seed) for seed in range(12)]
    pictures = Pictures(PATIENTS, [picture(99)] * 12, targets, targets)
    return Evaluation(answers, Drawings(list("abcdefghijkl"), ["windows"] * 12, pictures, score_pictures(pictures), {}, 0.5))


@pytest.fixture
def assessment(prepared) -> GeneralistAssessment:
    candidate = Candidate("run", "/nowhere", prepared.folder.uri, None, SliceSettings(), 0)
    return GeneralistAssessment(candidate, prepared, 1.5, CAUTION, THEN, "test", evaluation())


def test_figures_guards_and_files_are_those_of_the_judged_patients(assessment) -> None:
    figures = assessment.figures()
    assert (
        figures["val_loss"] == 1.5
        and figures["test_exact"] == pytest.approx(11 / 12)
        and figures["test_passed_image_shuffle"] == 1.0
    )
    assert figures["test_psnr_gain"] > 50 and figures["test_latent_frechet"] == 0.5
    assert assessment.test_ids == PATIENTS.tolist() and assessment.tags()["exact"] == "0.917"
    assert "nearer to the target" in assessment.headline() and "answers: 12 of 12 patients" in assessment.lines()[1]
    files = assessment.files()
    assert files["answers.csv"].count(b"\n") == 13
    assert Image.open(io.BytesIO(files["pictures.png"])).width == 3 * 256 + 2 * GAP


def test_card_and_page_name_no_patient_and_the_page_shows_input_target_and_drawing(assessment) -> None:
    usage = Usage({}, {}, {})
    data = DataSummary("lists", "digest", usage, 0, 0, "", "no patient is in two splits")
    trials = [
        TrialSummary(0, "COMPLETE", {"train.lr": 0.0017439263563117}, value=1.5),
        TrialSummary(1, "FAILED", {}, reason="<gone>"),
    ]
    summary = SearchSummary(
        name="s", system="unimedvl", model="models:/m@champion", started=datetime(2026, 1, 1), seconds=1.0, trials=trials,
        champion=0, data=data, command="python jobs/tune_unimedvl.py",
    )  # fmt: skip
    name, page = assessment.page(summary, FACTS)
    card = assessment.card(FACTS)
    for text in (html.unescape(page), card):
        assert CAUTION in text and not re.search("smith", text)
    assert name == "report.html" and page.count("data:image/png;base64,") == 12 and "&lt;gone&gt;" in page
    assert "<td>0.00174</td>" in page, "three digits of a setting are enough to read"
    assert "psnr_gain" in page and "swapped" in page and "<script" not in page
    assert not re.search(r"""(?:src|href)=["']?http""", page), "it asks nobody for anything"
    assert "## Judged on test patients" in card


def test_data_that_ask_nothing_about_pictures_are_judged_by_their_loss_alone(prepared) -> None:
    candidate = Candidate("run", "/nowhere", prepared.folder.uri, None, SliceSettings(), 0)
    nothing = GeneralistAssessment(candidate, prepared, 1.5, CAUTION, THEN, "test", Evaluation(None, None))
    assert nothing.figures() == {"val_loss": 1.5} and nothing.files() == {} and nothing.test_ids == []
    assert "nobody was judged" in nothing.lines()[0] and nothing.headline() == ""


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    """As a search registers it."""
    folder = tmp_path_factory.mktemp("served")
    UniMedVLRecipe(SIZES, vit=ResizeSettings(14, 56, 28), vae=ResizeSettings(8, 64, 16)).export(
        tiny_network(), folder / "model"
    )
    registered = GeneralistAssessment.artefact(None, FACTS, folder / "model", folder / "registered")  # type: ignore[arg-type]
    assert registered == folder / "registered"
    return registered


def test_a_registered_model_answers_and_draws_marked_pictures_by_itself(served: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(0)[:, :, 0]).save(tmp_path / "chest.png")
    rows = pd.DataFrame(
        {
            "image": [str(tmp_path / "chest.png"), picture(0)[:, :, 0].tolist(), str(tmp_path / "none.png")],
            "task": ["answer", "draw", "draw"],
            "prompt": ["Which side?", "Darker.", "Darker."],
        }
    )
    model = mlflow.pyfunc.load_model(str(served))
    params = {"max_new_tokens": 6, "num_timesteps": 3, "seed": 3}
    answer, drawing, lost = model.predict(rows, params).to_dict("records")
    assert answer["answer"] and not answer["picture"] and not answer["note"]
    drawn = Image.open(io.BytesIO(base64.b64decode(drawing["picture"])))
    settings = json.loads(drawn.text[SETTINGS])
    assert drawn.height == 30 and drawn.width >= 16
    assert settings["synthetic"] and settings["num_timesteps"] == 3 and settings["seed"] == 3
    assert "none.png" in lost["note"] and not lost["picture"]
    again = model.predict(rows[:1], params)["answer"].tolist()
    assert again == [answer["answer"]] != model.predict(rows[:1], params | {"seed": 4})["answer"].tolist()


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("task", "paint", "task is 'paint'"), ("prompt", None, "no column prompt"), ("image", [[300.0]], "is no picture")],
)
def test_requests_that_make_no_sense_are_refused_or_noted(served: Path, column: str, value: object, reason: str) -> None:
    rows = pd.DataFrame({"image": [picture(0)[:, :, 0]], "task": ["answer"], "prompt": ["Which side?"]})
    rows = rows.drop(columns=column) if value is None else rows.assign(**{column: [value]})
    model = mlflow.pyfunc.load_model(str(served)).unwrap_python_model()
    if column == "image":
        assert reason in model.predict(None, rows)["note"][0]
        return
    with pytest.raises(UserError, match=reason):
        model.predict(None, rows)


def test_the_tools_take_a_registered_model(served: Path) -> None:
    assert (network_folder(str(served), "", "files") / "ema.safetensors").is_file()
