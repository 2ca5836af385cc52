"""The lung recipe: its loss has the known values, learns, and comes back from its export."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raymed.data.labels import LabelTable
from raymed.data.record import Image, Record
from raymed.errors import UserError
from raymed.models.norm import batch_norms, settle_batch_norms, step_statistics
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import AugmentSettings
from raymed.recipes.recipe import TOKENS, Batch, Loss, TrainingPass
from raymed.systems.lung.recipe import LossSettings, LungRecipe

FAMILIES = ["tiny", "internvl-tiny", "tiny+tiny"]
SIZE = 56


def _recipe(preset: str = "tiny", loss: LossSettings | None = None, **model: object) -> LungRecipe:
    settings = ModelSettings(preset=preset, **model)  # type: ignore[arg-type]
    return LungRecipe.for_data(LabelTable.open("lung"), SIZE, settings, loss)


def _records(rows: int = 8, channels: int = 1, labels: Sequence[int | None] = (0, 1, 2, 3)) -> list[Record]:
    """Pictures with a bright quarter whose place is the class."""
    draw = np.random.default_rng(0)
    records = []
    for row in range(rows):
        label = labels[row % len(labels)]
        pixels = draw.integers(0, 100, (SIZE, SIZE, channels), dtype=np.uint8)
        top, left = divmod(label or 0, 2)
        half = SIZE // 2
        pixels[top * half : (top + 1) * half, left * half : (left + 1) * half] += 120
        pixels.flags.writeable = False
        images = (Image("input", 0, pixels),)
        records.append(Record(f"p{row}/0", f"p{row}", f"p{row}", 0, label, "made", images, ()))
    return records


class _Fixed(nn.Module):
    """A network with given outputs."""

    def __init__(self, **outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return self.outputs


def total(loss: Loss) -> float:
    """The sum of the loss's only term."""
    return float(loss.terms["loss"].total.detach())


def _loss_of(target: int, smoothing: float) -> float:
    recipe = _recipe(loss=LossSettings(label_smoothing=smoothing))
    batch = Batch({"pixels": torch.zeros(1, 1, 1, 1), "labels": torch.tensor([target])}, {"loss": 1.0}, ["a"])
    return total(recipe.compute_loss(_Fixed(logits=torch.tensor([[2.0, 0, 0, 0]])), batch))


def test_choice_loss_has_the_known_values() -> None:
    assert _loss_of(0, 0.01) == pytest.approx(0.355753, abs=1e-6)
    assert _loss_of(0, 0.0) == pytest.approx(0.340753, abs=1e-6)
    assert _loss_of(1, 0.01) == pytest.approx(2.335753, abs=1e-6)


def test_smallest_smoothed_loss_is_the_entropy_of_its_target() -> None:
    target = torch.tensor([[0.9925, 0.0025, 0.0025, 0.0025]])
    batch = Batch({"pixels": torch.zeros(1, 1, 1, 1), "labels": torch.tensor([0])}, {"loss": 1.0}, ["a"])
    assert total(_recipe().compute_loss(_Fixed(logits=target.log()), batch)) == pytest.approx(0.052408, abs=1e-6)


def test_both_terms_are_weighted_and_logged() -> None:
    recipe = _recipe(loss=LossSettings(label_smoothing=0, choice_weight=2.0, lm_weight=0.5))
    batch = Batch({"pixels": torch.zeros(2, 1, 1, 1), "labels": torch.tensor([0, 0])}, {"loss": 2.0}, ["a", "b"])
    network = _Fixed(
        logits=torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]]),
        language_loss=torch.tensor([1.0, 3.0]),
        tokens=torch.tensor([300, 300]),
    )
    loss = recipe.compute_loss(network, batch)
    choice = 0.340753 + 2.340753
    assert total(loss) == pytest.approx(2 * choice + 0.5 * 4, abs=1e-5)
    assert loss.sums["choice_loss"] == (pytest.approx(choice, abs=1e-5), 2)
    assert loss.sums["language_loss"] == (pytest.approx(4.0), 2)
    assert loss.sums["accuracy"] == (1.0, 2)
    assert loss.sums[TOKENS] == (600.0, 0)  # a number to tell a second, with nothing to be its mean over


@pytest.mark.parametrize("preset", FAMILIES)
def test_a_batch_of_four_is_the_sum_of_four_alone(preset: str) -> None:
    recipe = _recipe(preset)
    torch.manual_seed(0)
    module = recipe.build().eval()
    records = _records(4)
    with torch.no_grad():
        together = recipe.compute_loss(module, recipe.encode(records, None))
        alone = [recipe.compute_loss(module, recipe.encode([record], None)) for record in records]
    assert total(together) == pytest.approx(sum(total(loss) for loss in alone), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("preset", FAMILIES)
def test_a_tiny_network_learns_eight_slices_by_heart_and_survives_its_export(preset: str, tmp_path: Path) -> None:
    recipe = replace(_recipe(preset), augment=AugmentSettings("none"))
    torch.manual_seed(0)
    module = recipe.build().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    norms = batch_norms(module)
    batch = recipe.encode(_records(), TrainingPass(0, 0))
    for _ in range(40):
        loss = recipe.compute_loss(module, batch)
        optimizer.zero_grad()
        loss.mean(batch.units).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        settle_batch_norms(norms, step_statistics(norms))
    predicted = recipe.predict(module.eval(), batch)["logits"].numpy()
    assert predicted.dtype == np.float32 and predicted.shape == (8, 4)
    assert predicted.argmax(1).tolist() == [0, 1, 2, 3] * 2

    recipe.export(module, tmp_path / "model")
    found = LungRecipe.read(tmp_path / "model")
    assert found == recipe
    again = found.load(tmp_path / "model")
    assert not again.training
    np.testing.assert_allclose(found.predict(again, batch)["logits"], predicted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model", [{"preset": "internvl-tiny", "vision_lora": 2, "language_lora": 2}, {"preset": "tiny", "freeze_vision": True}]
)
def test_an_adapted_network_comes_back_as_a_plain_one(model: dict[str, object], tmp_path: Path) -> None:
    recipe = _recipe(**model)  # type: ignore[arg-type]
    module = recipe.build().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    batch = recipe.encode(_records(), None)
    expected = recipe.predict(module, batch)["logits"]
    recipe.export(module, tmp_path)
    loaded = recipe.load(tmp_path)
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    np.testing.assert_allclose(recipe.predict(loaded, batch)["logits"], expected, rtol=1e-4, atol=1e-5)


def test_an_export_whose_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    recipe = _recipe()
    recipe.export(recipe.build(), tmp_path)
    with pytest.raises(UserError, match="weights"):
        replace(recipe, codes=("0", "1"), names=("a", "b")).load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load"):
        recipe.load(tmp_path)
    with pytest.raises(UserError, match="holds no exported model"):
        LungRecipe.read(tmp_path / "nowhere")


@pytest.mark.parametrize("preset", FAMILIES)
def test_groups_hold_every_trainable_parameter_once_and_spare_norms_biases_and_embeddings(preset: str) -> None:
    recipe = _recipe(preset, backbone_lr_scale=0.1, freeze_projector=preset == "internvl-tiny")
    module = recipe.build()
    groups = recipe.groups(module)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    listed = [names[id(parameter)] for group in groups for parameter in group.parameters]
    assert sorted(listed) == sorted(name for name, p in module.named_parameters() if p.requires_grad)
    for group in groups:
        for parameter in group.parameters:
            name = names[id(parameter)]
            spared = parameter.ndim < 2 or any(word in name for word in ("embed_tokens", "cls_token", "position_embeddings"))
            assert group.decay != spared, name
            in_backbone = name.startswith(("backbone.", "network.model.vision_tower."))
            assert group.lr_scale == (0.1 if in_backbone else 1.0), name


def test_training_rows_without_label_are_named() -> None:
    records = _records(3, labels=(0, None, None))
    with pytest.raises(UserError, match="p1/0, p2/0"):
        _recipe().encode(records, TrainingPass(0, 0))
    batch = _recipe().encode(records, None)
    assert "labels" not in batch.tensors and batch.units == {"loss": 3}


def test_pictures_of_another_size_are_named() -> None:
    with pytest.raises(UserError, match=r"record p0/0 is 56x56 pixels, but the model takes 28x28"):
        replace(_recipe(), size=28).encode(_records(1), None)


def test_grey_and_colour_pictures_share_a_batch() -> None:
    batch = _recipe().encode(_records(1) + _records(1, channels=3), None)
    assert batch.tensors["pixels"].shape == (2, 3, SIZE, SIZE)
    grey = batch.tensors["pixels"][0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


def test_augmentation_is_for_training_only_and_follows_the_pass() -> None:
    recipe, records = _recipe(), _records(2)

    def pixels(training: TrainingPass | None) -> torch.Tensor:
        return recipe.encode(records, training).to(torch.device("cpu")).tensors["pixels"]

    plain, first = pixels(None), pixels(TrainingPass(0, 0))
    assert np.array_equal(plain[0, 0], records[0].images[0].pixels[..., 0])
    assert not torch.equal(plain, first)
    assert torch.equal(first, pixels(TrainingPass(0, 0)))
    assert not torch.equal(first, pixels(TrainingPass(0, 1)))


def test_val_loss_is_that_of_the_patients_mean_probability() -> None:
    logits = np.log(np.array([[0.8, 0.1, 0.05, 0.05], [0.2, 0.6, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]], np.float32))
    columns = {
        "id": np.array(["a/0", "a/1", "b/0"]),
        "patient": np.array(["a", "a", "b"]),
        "label": np.array([0, 0, 1]),
        "source": np.array(["s"] * 3),
    }
    metrics = _recipe().evaluate({"logits": logits}, columns)
    assert metrics["val_loss"] == pytest.approx(-(np.log(0.5) + np.log(0.7)) / 2, rel=1e-5)


def test_a_recipe_can_be_sent_and_compared() -> None:
    recipe = _recipe("internvl-tiny")
    assert pickle.loads(pickle.dumps(recipe)) == recipe and hash(recipe) == hash(_recipe("internvl-tiny"))
    assert recipe.settings()["model"]["preset"] == "internvl-tiny"


def test_loss_weights_out_of_range_are_refused() -> None:
    for wrong in ({"label_smoothing": 1.0}, {"choice_weight": 0.0}, {"lm_weight": -1.0}):
        with pytest.raises(UserError, match="loss"):
            LossSettings(**wrong)
