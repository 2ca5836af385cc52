"""Paths that a person types hold in workers, which work in other folders, and errors know where a submitted job looks."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, script
from PIL import Image
from transformers import AutoModel, InternVLVisionConfig, ResNetForImageClassification

from raymed.data.labels import LabelTable
from raymed.data.prepared import Prepared
from raymed.data.sources import SourceSettings, list_source
from raymed.errors import UserError
from raymed.job.command_line import parse
from raymed.models import backbones
from raymed.models.model_folders import find_model
from raymed.models.settings import ClipModelSettings, ModelSettings
from raymed.retrieval import extract
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.lung.options import LungOptions
from raymed.systems.options import for_search
from raymed.systems.vitp import network as internvl_pretrain
from raymed.systems.vitp.recipe import VitpRecipe
from raymed.tuning.budget import Budget
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension
from tests.text_models import write_bert


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's folder."""
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which a person types."""
    monkeypatch.chdir(tmp_path)


def test_a_lung_model_named_by_a_relative_path_is_found_by_a_worker_elsewhere(
    prepared: Prepared, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ResNetForImageClassification(backbones.PRESETS["tiny"](prepared.size)).save_pretrained("weights")
    recipe = LungOptions(data=prepared.folder.uri, model=ModelSettings(path="weights")).spec(prepared).recipe
    monkeypatch.chdir(elsewhere)
    assert recipe.build() is not None


def test_a_searched_model_named_by_a_relative_path_is_found_by_a_worker_elsewhere(
    prepared: Prepared, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        ResNetForImageClassification(backbones.PRESETS["tiny"](prepared.size)).save_pretrained(name)
    settings = SearchSettings(space={"model.path": Dimension(choices=("one", "two"))})
    common = {"data": prepared.folder.uri, "storage": str(elsewhere)}
    search = LungOptions(**common, model=ModelSettings(path="one"), search=settings).open_search(prepared, Budget(2))
    monkeypatch.chdir(elsewhere)
    for path in search.settings.space["model.path"].choices:
        assert search.run_spec(0, {"model.path": path}).recipe.build() is not None
    wrong = SearchSettings(space={"model.path": Dimension(choices=("one", "none"))})
    with pytest.raises(UserError, match="there is no model 'one'"):
        LungOptions(**common, search=wrong).open_search(prepared, Budget(2))


def test_a_search_that_was_typed_with_relative_paths_is_the_same_search_elsewhere(
    prepared: Prepared, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ResNetForImageClassification(backbones.PRESETS["tiny"](prepared.size)).save_pretrained("weights")
    shutil.copytree(prepared.folder.path, "data")
    job, words = script("tune_lung"), ["--data", "data", "--storage", "runs", "--model.path", "weights"]
    options = for_search(parse(job.TuneLung, words, defaults=ROOT / "configs" / "tune_lung.yaml", script=job))
    search = options.open_search(options.prepared(), options.budget)
    monkeypatch.chdir(elsewhere)
    spec = search.run_spec(0, {"train.lr": 1e-3})
    assert spec.recipe.build() is not None
    assert Prepared.open(spec.data).digest == prepared.digest
    assert spec.folder.path.startswith(f"{tmp_path}/runs/")
    assert search.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_features_of_relative_paths_are_computed_by_a_worker_elsewhere(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = InternVLVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    AutoModel.from_config(config).save_pretrained("vit")
    for label in ("sick", "well"):
        Path("pictures", label).mkdir(parents=True)
        Image.new("L", (28, 28), 90).save(f"pictures/{label}/1.png")
    spread = extract._spread

    def spread_elsewhere(*work: Any) -> Iterator[extract.Outcome]:
        with contextlib.chdir(elsewhere):
            yield from spread(*work)

    monkeypatch.setattr(extract, "_spread", spread_elsewhere)
    job = script("extract_features")
    words = ["--model", "vit", "--image-dir", "pictures", "--output", "features.npz"]
    outcome = job.main(parse(job.ExtractFeatures, words, aliases=job.GUIDE, script=job))
    assert outcome.data["pictures"] == 2 and outcome.data["refused"] == []
    assert (tmp_path / "features" / extract.MANIFEST).is_file() and (tmp_path / "features.npz").is_file()
    assert list(elsewhere.iterdir()) == []


def test_clip_towers_named_by_relative_paths_are_found_by_a_worker_elsewhere(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bert(Path("models/bert"))
    ResNetForImageClassification(backbones.PRESETS["tiny"](32)).save_pretrained("weights")
    monkeypatch.setenv("RAYMED_MODELS", "models")
    model = ClipModelSettings("tiny", "weights", "bert", embed_dim=16)
    recipe = ClipRecipe.for_data(LabelTable.of(["lung", "normal"]), 32, [["lung"], ["normal"]], model)
    monkeypatch.chdir(elsewhere)
    assert recipe.build() is not None


def test_a_pretrained_model_is_found_by_a_worker_elsewhere(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("Small").mkdir()
    internvl_pretrain.build(ModelSettings(preset="internvl-tiny"), 28, "imagenet").export(Path("Small"))
    recipe = VitpRecipe(28, model=ModelSettings(path="Small").located())
    monkeypatch.chdir(elsewhere)
    assert recipe.build() is not None


def test_a_name_that_is_nearly_right_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models/bert-base-chinese").mkdir(parents=True)
    monkeypatch.setenv("RAYMED_MODELS", "models")
    with pytest.raises(UserError, match=r"did you mean bert-base-chinese\?"):
        find_model("bert-base-chinse", "config.json")
    with pytest.raises(UserError, match=r"hf download org/bert --local-dir bert .*HF_ENDPOINT"):
        find_model("org/bert", "config.json")
    with pytest.raises(UserError) as told:
        find_model("/nowhere/bert", "config.json")
    assert "hf download" not in str(told.value)


def test_a_submitted_job_says_that_it_does_not_see_the_machine_it_was_typed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0"
    copy.mkdir(parents=True)
    for ask in (
        lambda: Prepared.open("prepared"),
        lambda: list_source(Path("patients"), SourceSettings()),
        lambda: find_model("InternVL2_5-1B", "config.json"),
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError) as plain:
            ask()
        assert "This job was" not in str(plain.value)
        monkeypatch.chdir(copy)
        with pytest.raises(UserError, match=r"This job was submitted.*that all of them have, or a URI"):
            ask()
