"""A registered report writer is asked through MLflow and writes what the network itself writes, or says why it does not."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from PIL import Image as Pillow
from report_records import SIZE

from raymed.data.image import ImageSettings
from raymed.data.record import Image, Message, Record
from raymed.errors import UserError
from raymed.recipes.exported import open_model
from raymed.registry.address import resolve_model
from raymed.registry.served_model import save_served
from raymed.registry.serving import NETWORK
from raymed.storage.seal import seal
from raymed.systems.mamba_vlm import serving
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import BridgeSettings, GenerationSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading
from raymed.systems.mamba_vlm.texts import generate_texts
from raymed.tracking.tracker import Tracker

PICTURE = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vision = VisionSettings(preset="tiny", output_stage=2, target_side=4)
    recipe = ReportRecipe(Reading(ImageSettings(size=SIZE)), vision=vision, bridge=BridgeSettings(max_visual_tokens=16))
    module, network = recipe.build(), tmp_path_factory.mktemp("checkpoint") / "model"
    with torch.no_grad():
        letters = recipe.language_model.tokenizer("abcdefghijklmnopqrstuvwxyz")["input_ids"]
        seen = torch.full((len(module.language_model.backbone.embeddings.weight), 1), 0.01)
        seen[letters] = 1
        module.language_model.backbone.embeddings.weight.mul_(seen)  # the likeliest tokens are letters: there is a text
    recipe.export(module, network)
    seal(network)
    served = tmp_path_factory.mktemp("served") / "model"
    save_served(serving, {NETWORK: network}, serving.SIGNATURE, served)
    return served


@pytest.fixture(scope="module")
def served(folder: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(folder))


def test_a_file_and_its_array_get_the_networks_own_text(
    served: mlflow.pyfunc.PyFuncModel, folder: Path, tmp_path: Path
) -> None:
    Pillow.fromarray(PICTURE).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    images = [str(tmp_path / "a.png"), PICTURE, str(tmp_path / "broken.png"), str(tmp_path / "missing.nii.gz")]
    asked = pd.DataFrame({"image": images, "question": ["What is there?"] * 4})
    answers = served.predict(asked)
    recipe, network = open_model(folder / "artifacts" / "model")
    messages = (Message("human", "What is there?"), Message("gpt", ""))
    record = Record("a", "", "", 0, None, "", (Image("input", 0, PICTURE[..., None]),), messages)
    [text] = generate_texts(recipe, network, [record], GenerationSettings())  # type: ignore[arg-type]
    assert text and answers["text"].tolist() == [text, text, "", ""]
    assert answers["abstained"].tolist() == [False, False, True, True]
    assert answers["note"].tolist()[:2] == ["", ""] and all(answers["note"].tolist()[2:]), "nothing is put in its place"


def test_it_is_asked_over_http_without_a_question_too(served: mlflow.pyfunc.PyFuncModel) -> None:
    body = {"dataframe_split": {"columns": ["image"], "data": [[PICTURE.tolist()]]}}
    answer = TestClient(scoring_server.init(served)).post(
        "/invocations", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    [row] = answer.json()["predictions"]
    assert row["question"] == "Describe this image." and row["text"]


def test_its_address_is_that_of_a_report_writer_and_a_damaged_one_is_refused(folder: Path, tmp_path: Path) -> None:
    resolved = resolve_model(str(folder), Tracker.open(f"sqlite:///{tmp_path}/mlflow.db"))
    assert resolved.inference is None and resolved.network == folder / "artifacts" / "model"
    weights = folder / "artifacts" / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    try:
        with pytest.raises(UserError, match=r"model\.safetensors"):
            mlflow.pyfunc.load_model(str(folder))
    finally:
        weights.write_bytes(content)
