"""The four jobs of image retrieval, one after the other, as docs/retrieval.md has them."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from commands import done, job
from PIL import Image
from transformers import AutoModel, InternVLVisionConfig

from raymed.data.prepared import Prepared

SIZE = 28


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT as transformers writes it."""
    torch.manual_seed(0)
    config = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=SIZE
    )
    folder = tmp_path_factory.mktemp("model")
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_from_a_model_to_the_nearest_cases_of_a_picture(prepared: Prepared, model: Path, tmp_path: Path) -> None:
    assert "left out: nothing" in done("extract_vit", tmp_path, "--model", str(model), "--out", "vit")
    for split, out in (("train", "gallery"), ("test", "queries")):
        chosen = ["--model", "vit", "--input", prepared.folder.uri, "--split", split, "--features.sweep", "2"]
        done("extract_features", tmp_path, *chosen, "--out", out)

    asked = ["--gallery", "gallery", "--queries", "queries", "--bootstrap", "20"]
    both = done("evaluate_retrieval", tmp_path, *asked)
    assert "<- best" in both and "chosen on these queries" in both
    only = done("evaluate_retrieval", tmp_path, *asked, "--layer", "1")
    assert "<- best" not in only and "chosen on these queries" not in only
    (line,) = [line for line in both.splitlines() if line.startswith("1 ")]
    assert line.split("  <-")[0] in only, "a layer is judged alike alone and among others"

    refused = job("evaluate_retrieval", tmp_path, *asked, "--layer", "7")
    assert refused.returncode == 2 and "layers 1, 2, not of 7" in refused.stderr

    kept = sorted((tmp_path / "runs").glob("retrieval-*"))
    assert len(kept) == 2 and all((folder / "sheet.html").stat().st_size > 1000 for folder in kept)
    neighbours = pd.read_csv(kept[0] / "neighbours.csv")
    assert (neighbours["query_patient"] != neighbours["patient"]).all()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("raymed-retrieval")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {folder.name for folder in kept}
    assert any("layer_1_top_1" in run.data.metrics for run in runs)

    Image.new("L", (SIZE, SIZE), 90).save(tmp_path / "picture.png")
    asked = ["--gallery", "gallery", "--input", "picture.png", "--k", "3", "--layer", "1", "--sheet", "cases.html"]
    nearest = done("retrieve", tmp_path, *asked)
    assert [line.split()[0] for line in nearest.splitlines()[1:4]] == ["1", "2", "3"]
    assert f"sheet: {tmp_path / 'cases.html'}" in nearest
    page = (tmp_path / "cases.html").read_text("utf-8")
    assert page.count('<img src="data:image/') == 4 and "patient 1" in page and not re.search(r"p\d{3}|picture\.png", page)
