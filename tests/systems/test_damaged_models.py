"""A damaged model is refused in every way that a model is opened, and the file is named."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from commands import script
from conftest import write_prepared
from PIL import Image

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.predict import Inference
from raymed.models.settings import ModelSettings
from raymed.models.vision_tower import VisionTower
from raymed.recipes.exported import open_model
from raymed.registry.address import open_tower, resolve_model
from raymed.registry.candidate import Candidate
from raymed.registry.served_model import save
from raymed.storage.seal import SEAL
from raymed.systems.clip import checkpoint as clip_checkpoint
from raymed.systems.lung.recipe import LungRecipe
from raymed.tracking.tracker import Tracker

WEIGHTS = "model.safetensors"


def flip(file: Path, count: int = 20, seed: int = 0, first: int = 0, last: int | None = None) -> None:
    """Flip bits of a file, from byte `first` on and before `last`."""
    draw, content = random.Random(seed), bytearray(file.read_bytes())
    for place in draw.sample(range(first, last or len(content)), count):
        content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", patients=8, slices=2)


@pytest.fixture(scope="module")
def made(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an exported network of a ViT, and the model registered from it."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    recipe = LungRecipe.for_data(data.labels, data.size, ModelSettings(preset="internvl-tiny"))
    recipe.export(recipe.build(), folder / "step" / "model")
    inference = Inference("lung v1", data.labels, data.image, SliceSettings(2), Temperature(1.5, 0.8), data.digest)
    save(folder / "step" / "model", inference, folder / "registered")
    return folder


@pytest.fixture
def models(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "models"))


def predict(models: Path, data: Prepared, tmp_path: Path) -> None:
    (tmp_path / "patients" / "anna").mkdir(parents=True)
    Image.new("L", (28, 28), 90).save(tmp_path / "patients" / "anna" / "1.png")
    given = {"input": str(tmp_path / "patients"), "out": str(tmp_path / "out.csv"), "storage": str(tmp_path)}
    job = script("predict_lung")
    job.main(job.PredictLung(model=str(models / "registered"), **given))


def evaluate(models: Path, data: Prepared, tmp_path: Path) -> None:
    job = script("evaluate_lung")
    job.main(job.Evaluate(model=str(models / "registered"), data=data.folder.uri, storage=str(tmp_path), bootstrap=10))


def evaluate_checkpoint(models: Path, data: Prepared, tmp_path: Path) -> None:
    job = script("evaluate_lung")
    job.main(job.Evaluate(model=str(models / "step"), data=data.folder.uri, storage=str(tmp_path), bootstrap=10))


def serve(models: Path, data: Prepared, tmp_path: Path) -> None:
    mlflow.pyfunc.load_model(str(models / "registered"))


def extract(models: Path, data: Prepared, tmp_path: Path) -> None:
    open_tower(str(models / "registered"), f"sqlite:///{tmp_path}/mlflow.db")


def promote(models: Path, data: Prepared, tmp_path: Path) -> None:
    candidate = Candidate("run", str(models / "step"), data.folder.uri, None, SliceSettings(2), 0)
    candidate.fetch(candidate.checkpoint, tmp_path / "fetched")


def train_on(models: Path, data: Prepared, tmp_path: Path) -> None:
    LungRecipe.for_data(data.labels, data.size, ModelSettings(path=str(models / "step" / "model"))).build()


WAYS = [predict, evaluate, evaluate_checkpoint, serve, extract, promote, train_on]


@pytest.mark.parametrize("use", WAYS)
def test_flipped_bits_in_the_weights_are_refused_with_the_file_however_a_model_is_opened(
    use: Callable[[Path, Prepared, Path], None], models: Path, data: Prepared, tmp_path: Path
) -> None:
    for weights in models.rglob(WEIGHTS):
        start = 8 + int.from_bytes(weights.read_bytes()[:8], "little")  # the numbers: what no reader would stumble over
        flip(weights, first=start)
    with pytest.raises(Exception, match=rf"{WEIGHTS} is missing, damaged or exchanged") as refused:
        use(models, data, tmp_path)
    assert isinstance(refused.value, UserError)


@pytest.mark.parametrize("file", ["artifacts/inference.json", "serving.py", "code/raymed/data/image.py"])
def test_a_served_model_is_refused_whatever_file_of_it_was_changed(file: str, models: Path, tmp_path: Path) -> None:
    changed = next(iter((models / "registered").rglob(Path(file).name)))
    changed.write_bytes(changed.read_bytes().replace(b"1", b"2"))
    with pytest.raises(UserError, match=changed.name):
        resolve_model(str(models / "registered"), Tracker.open(f"sqlite:///{tmp_path}/mlflow.db"))


def test_a_sealed_model_is_opened_without_a_word_and_a_foreign_one_with_one(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    open_model(models / "step" / "model")
    assert "digests" not in caplog.text
    (models / "step" / "model" / SEAL).unlink()
    open_model(models / "step" / "model")
    assert caplog.text.count("has no list of digests") == 1


def test_a_folder_that_was_taken_out_is_sealed_and_refused_when_damaged(models: Path, tmp_path: Path) -> None:
    tower = VisionTower.read(models / "step" / "model")
    tower.write(tmp_path / "vit", "native")
    assert VisionTower.read(tmp_path / "vit").digest == tower.digest
    flip(tmp_path / "vit" / WEIGHTS, first=4000)
    with pytest.raises(UserError, match=WEIGHTS):
        VisionTower.read(tmp_path / "vit")
    tower.write(tmp_path / "vit.pth", "native")
    flip(tmp_path / "vit.pth", first=4000)
    with pytest.raises(UserError, match=r"vit\.pth is damaged"):
        VisionTower.read(tmp_path / "vit.pth")


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_a_tensor_of_a_pth_file_is_refused(seed: int, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_best.pth"
    weights = torch.rand(9999)
    clip_checkpoint.write(file, {name: {} for name in clip_checkpoint.KEYS} | {"model_state_dict": {"w": weights}})
    assert clip_checkpoint.read(file)
    start = file.read_bytes().index(weights.numpy().tobytes())
    flip(file, 1, seed, first=start, last=start + 4 * 9999)
    with pytest.raises(UserError, match=r"checkpoint_best\.pth"):
        clip_checkpoint.read(file)
