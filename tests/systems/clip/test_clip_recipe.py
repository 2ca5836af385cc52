"""The CLIP recipe: its losses have the known values, it learns, and it can be asked about other classes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raymed.data.labels import LabelTable
from raymed.data.record import Image, Record
from raymed.errors import UserError
from raymed.models.norm import batch_norms, settle_batch_norms, step_statistics
from raymed.models.settings import ClipModelSettings
from raymed.recipes.exported import open_model
from raymed.recipes.recipe import Batch, Loss, TrainingPass
from raymed.systems.clip.crops import ClipAugmentSettings
from raymed.systems.clip.recipe import ClipLossSettings, ClipRecipe, spread_cross_entropy

SIZE = 40
TWO = LabelTable.from_dict({"classes": [{"code": "0", "name": "正常"}, {"code": "1", "name": "肺炎"}]})
GOLDEN = {"class": [0.77301, 0.71093, 0.75635], "clip": [2.3206, 2.32332, 2.23641]}  # of three steps
TEXTS = (("正常的肺部图像",), ("肺炎的图像", "显示肺炎的X光片"))


def _recipe(
    loss: ClipLossSettings | None = None, texts: Sequence[Sequence[str]] = TEXTS, augment: str = "none", **model: object
) -> ClipRecipe:
    settings = ClipModelSettings(**{"image_encoder": "tiny", "text_encoder": "characters", "embed_dim": 32} | model)  # type: ignore[arg-type]
    return ClipRecipe.for_data(TWO, SIZE, texts, settings, loss, ClipAugmentSettings(augment))  # type: ignore[arg-type]


def _records(rows: int, seed: int = 0, labels: Sequence[int | None] = (0, 1)) -> list[Record]:
    """Noisy pictures, brighter on the left or on the right."""
    draw, side = np.random.default_rng(seed), 44
    records = []
    for row in range(rows):
        label = labels[row % len(labels)]
        pixels = draw.integers(0, 120, (side, side, 1), dtype=np.uint8)
        pixels[:, slice(0, side // 2) if label else slice(side // 2, side)] += 60
        records.append(Record(f"p{row}/0", f"p{row}", f"p{row}", 0, label, "made", (Image("input", 0, pixels),), ()))
    return records


class _Fixed(nn.Module):
    """A network with given outputs."""

    def __init__(self, logits: torch.Tensor, prompt_logits: torch.Tensor | None = None) -> None:
        super().__init__()
        prompts = logits if prompt_logits is None else prompt_logits
        self.outputs = {"logits": logits, "prompt_logits": prompts, "scale": torch.tensor(1 / 0.07)}

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.outputs


def _batch(labels: Sequence[int], prompts: Sequence[int] = ()) -> Batch:
    tensors = {"pixels": torch.zeros(len(labels), 1, 1, 1), "labels": torch.tensor(labels)}
    if prompts:
        tensors["prompts"] = torch.tensor(prompts)
    return Batch(tensors, float(len(labels)), [str(row) for row in range(len(labels))])


def total(loss: Loss) -> float:
    """The sum of the loss's only term."""
    return float(loss.terms["loss"].total.detach())


def _plain_contrastive(pairs: torch.Tensor) -> torch.Tensor:
    """CLIP's loss as published: picture i belongs to text i and to no other."""
    diagonal = torch.arange(len(pairs))
    return (F.cross_entropy(pairs, diagonal) + F.cross_entropy(pairs.T, diagonal)) / 2


def test_class_loss_has_the_known_value_and_logs_accuracy_and_temperature() -> None:
    loss = _recipe().compute_loss(_Fixed(torch.tensor([[2.0, 0.0], [2.0, 0.0]])), _batch([0, 1]))
    assert total(loss) == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2)), abs=1e-6)
    assert loss.sums == {"accuracy": (1.0, 2), "temperature": (pytest.approx(0.14), 2)}


def test_class_loss_has_no_floor_and_contrastive_loss_that_of_how_often_a_class_occurs() -> None:
    """32 pictures of 2 classes told apart perfectly: 0, and ln 16 that no training removes."""
    labels = [0, 1] * 16
    logits = torch.where(F.one_hot(torch.tensor(labels), 2).bool(), 50.0, -50.0)
    assert total(_recipe().compute_loss(_Fixed(logits), _batch(labels))) == pytest.approx(0, abs=1e-6)
    contrastive = _recipe(ClipLossSettings("clip")).compute_loss(_Fixed(logits), _batch(labels, labels))
    assert total(contrastive) / 32 == pytest.approx(math.log(16), abs=1e-5)


def test_spread_targets_have_the_value_and_gradient_of_the_published_loss_where_captions_are_identical() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 1, 0, 1])
    logits = torch.randn(5, 2, requires_grad=True)
    loss = _recipe(ClipLossSettings("clip")).compute_loss(_Fixed(logits), _batch(labels.tolist(), labels.tolist()))
    (gradient,) = torch.autograd.grad(loss.terms["loss"].total / 5, logits)
    published = _plain_contrastive(logits[:, labels])
    (expected,) = torch.autograd.grad(published, logits)
    assert total(loss) / 5 == pytest.approx(float(published.detach()), abs=1e-6)
    torch.testing.assert_close(gradient, expected)


def test_spread_targets_call_no_picture_of_the_same_class_a_negative() -> None:
    """Two prompts of one class: the published loss punishes the other prompt, spread targets ask for both."""
    pairs = torch.tensor([[5.0, 5.0, -5.0], [5.0, 5.0, -5.0], [-5.0, -5.0, 5.0]], requires_grad=True)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    loss = spread_cross_entropy(pairs, same)
    assert loss.tolist() == pytest.approx([math.log(2), math.log(2), 0], abs=1e-3)
    uneven = torch.tensor([[7.0, 3.0, -5.0]])
    assert float(spread_cross_entropy(uneven, same[:1])) > float(loss.detach()[0]) + 1


def test_the_direction_from_texts_to_pictures_is_added_with_its_weight() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 1, 0])
    logits = torch.randn(4, 2)
    plain = total(_recipe().compute_loss(_Fixed(logits), _batch(labels.tolist())))
    both = total(_recipe(ClipLossSettings(text_to_image=0.5)).compute_loss(_Fixed(logits), _batch(labels.tolist())))
    columns = logits[:, labels].T
    expected = F.cross_entropy(columns, torch.arange(4), reduction="sum")
    assert both - plain == pytest.approx(0.5 * float(expected), abs=1e-5)


def test_a_step_s_accuracy_is_that_of_its_own_forward_pass_and_every_layer_goes_on_training() -> None:
    """An accuracy function that switches to evaluation would freeze batch norms and dropout for the rest of the epoch."""
    recipe = _recipe()
    module = recipe.build().train()
    forwards: list[bool] = []
    module.register_forward_hook(lambda network, _, output: forwards.append(network.training))
    loss = recipe.compute_loss(module, recipe.encode(_records(8), TrainingPass(0, 0)))
    assert forwards == [True] and loss.sums["accuracy"][1] == 8
    assert all(each.training for each in module.modules())


def test_golden_losses() -> None:
    """A change that should not move the losses proves it here."""
    for kind, golden in GOLDEN.items():
        recipe = _recipe(ClipLossSettings(kind), augment="standard")  # type: ignore[arg-type]
        torch.manual_seed(0)
        module = recipe.build().train()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        seen = []
        for epoch in range(3):
            batch = recipe.encode(_records(8), TrainingPass(0, epoch)).to(torch.device("cpu"))
            total = recipe.compute_loss(module, batch).mean(batch.units)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            seen.append(float(total.detach()))
        assert seen == pytest.approx(golden, rel=1e-3)


@pytest.mark.parametrize("loss", [ClipLossSettings(), ClipLossSettings("clip")])
def test_two_classes_are_learned_in_seconds_and_new_texts_can_be_asked_about(loss: ClipLossSettings, tmp_path: Path) -> None:
    recipe = _recipe(loss)
    torch.manual_seed(0)
    module = recipe.build().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    norms = batch_norms(module)
    records = _records(32)
    for epoch in range(20):
        batch = recipe.encode(records, TrainingPass(0, epoch))
        optimizer.zero_grad()
        recipe.compute_loss(module, batch).mean(batch.units).backward()
        optimizer.step()
        settle_batch_norms(norms, step_statistics(norms))
    assert float(module.logit_scale.detach()) != pytest.approx(-math.log(0.07), abs=1e-4), "the temperature is not trained"
    unseen = recipe.encode(_records(40, seed=1), None)
    predicted = recipe.predict(module.eval(), unseen)["logits"].numpy()
    assert predicted.dtype == np.float32 and predicted.shape == (40, 2)
    assert (predicted.argmax(1) == unseen.tensors["labels"].numpy()).mean() > 0.95

    recipe.export(module, tmp_path / "model")
    found, again = open_model(tmp_path / "model")
    assert found == recipe and not again.training
    np.testing.assert_allclose(found.predict(again, unseen)["logits"], predicted, rtol=1e-5, atol=1e-5)

    other = recipe.with_texts(("ill", "other", "well"), (("显示肺炎的X光片",), ("图像",), ("正常的肺部图像",)))
    asked = other.predict(other.load(tmp_path / "model"), unseen)["logits"]
    assert asked.shape == (40, 3)
    np.testing.assert_allclose(asked[:, 2], predicted[:, 0], rtol=1e-4, atol=1e-4)


def test_an_export_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    recipe = _recipe()
    recipe.export(recipe.build(), tmp_path)
    with pytest.raises(UserError, match="knows no word of the text of class 'a'"):
        recipe.with_texts(("a", "b"), (("ωψ",), ("正常",))).load(tmp_path)
    (tmp_path / "text_encoder" / "config.json").unlink()
    with pytest.raises(UserError, match="no usable text encoder"):
        recipe.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load"):
        recipe.load(tmp_path)


def test_the_text_encoder_has_a_learning_rate_of_its_own_and_every_parameter_one_group() -> None:
    recipe = _recipe(text_lr_scale=0.1)
    module = recipe.build()
    groups = recipe.groups(module)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    listed = [names[id(parameter)] for group in groups for parameter in group.parameters]
    assert sorted(listed) == sorted(names.values())
    for group in groups:
        for parameter in group.parameters:
            name = names[id(parameter)]
            assert group.lr_scale == (0.1 if name.startswith("text_encoder.") else 1.0), name
            assert group.decay == (parameter.ndim > 1 and "embeddings" not in name), name


def test_frozen_encoders_leave_projections_and_temperature_to_train() -> None:
    recipe = _recipe(freeze_text=True, freeze_image=True)
    module = recipe.build()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    listed = {names[id(parameter)] for group in recipe.groups(module) for parameter in group.parameters}
    assert listed == {
        *(f"image_projection.1.{part}" for part in ("weight", "bias")),
        *(f"text_projection.{part}" for part in ("weight", "bias")),
        "logit_scale",
    }


def test_prompts_of_the_clip_loss_are_of_the_pictures_class_and_follow_the_pass() -> None:
    recipe, records = _recipe(ClipLossSettings("clip")), _records(24)
    first = recipe.encode(records, TrainingPass(0, 0)).tensors["prompts"]
    assert set(first[::2].tolist()) == {0} and set(first[1::2].tolist()) == {1, 2}
    assert torch.equal(recipe.encode(records[5:], TrainingPass(0, 0)).tensors["prompts"], first[5:])
    assert not torch.equal(recipe.encode(records, TrainingPass(0, 1)).tensors["prompts"], first)
    assert "prompts" not in recipe.encode(records, None).tensors


def test_pictures_must_be_prepared_a_tenth_larger() -> None:
    assert _recipe().prepared_size == 44
    record = _records(1)[0]
    small = Record("p/0", "p", "p", 0, 0, "made", (Image("input", 0, record.images[0].pixels[:40, :40]),), ())
    with pytest.raises(UserError, match="is 40x40 pixels, but the model takes 44x44"):
        _recipe().encode([small], None)
    with pytest.raises(UserError, match="p1/0"):
        _recipe().encode(_records(2, labels=(0, None)), TrainingPass(0, 0))


def test_val_acc_is_of_pictures_in_percent_and_val_loss_of_patients() -> None:
    logits = np.log(np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]], np.float32))
    columns = {
        "id": np.array(["a/0", "a/1", "b/0"]),
        "patient": np.array(["a", "a", "b"]),
        "label": np.array([0, 0, 1]),
        "source": np.array(["s"] * 3),
    }
    judged = _recipe().evaluate({"logits": logits}, columns)
    assert judged["val_acc"] == pytest.approx(200 / 3)
    assert judged["accuracy"] == 1.0
    assert judged["val_loss"] == pytest.approx(-(np.log(0.6) + np.log(0.9)) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([["a"]], "texts for 1 classes, but 2 classes"),
        ([["a"], []], "the class '肺炎' has an empty text"),
        ([["a"], ["  "]], "the class '肺炎' has an empty text"),
        ([["a"], ["b", "a "]], "'a' stands for '正常' and again for '肺炎'"),
        ([["a"], ["b" * 200]], "class '肺炎' has 202 tokens, and the text encoder takes 128"),
    ],
)
def test_texts_that_do_not_fit_are_refused(texts: list[list[str]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        _recipe(texts=texts)


def test_a_recipe_can_be_sent_compared_and_written_down() -> None:
    recipe = _recipe(ClipLossSettings("clip"))
    assert pickle.loads(pickle.dumps(recipe)) == recipe and hash(recipe) == hash(_recipe(ClipLossSettings("clip")))
    assert ClipRecipe.from_settings(recipe.settings()) == recipe


def test_loss_settings_that_contradict_are_refused() -> None:
    for wrong in ({"text_to_image": -1.0}, {"kind": "clip", "text_to_image": 1.0}):
        with pytest.raises(UserError, match="text_to_image"):
            ClipLossSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["class", "clip"])
def test_what_a_frozen_image_encoder_made_of_pictures_gives_the_loss_of_the_pictures(kind: Literal["class", "clip"]) -> None:
    recipe = _recipe(ClipLossSettings(kind), freeze_image=True)
    assert recipe.frozen_part is not None and not recipe.frozen_part.varied
    varied = _recipe(augment="minimal", freeze_image=True).frozen_part
    assert varied is not None and varied.varied and _recipe().frozen_part is None
    torch.manual_seed(0)
    module, records = recipe.build(), _records(8)
    made = recipe.features(module.eval(), recipe.encode(records, None)).detach().numpy()
    kept = [replace(record, images=(), features=each) for record, each in zip(records, made, strict=True)]
    where = TrainingPass(0, 0)
    losses = [total(recipe.compute_loss(module.train(), recipe.encode(each, where))) for each in (records, kept)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    logits = [recipe.predict(module.eval(), recipe.encode(each, None))["logits"] for each in (records, kept)]
    assert torch.allclose(*logits, atol=1e-5)
