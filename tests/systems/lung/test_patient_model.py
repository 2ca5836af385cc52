"""Attention over slices: it finds those that show the disease, weighs all alike where none does, and is judged fairly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import script
from safetensors.torch import load_file

from raymed.data.labels import LabelTable
from raymed.data.prepared import Prepared
from raymed.models.settings import ModelSettings
from raymed.systems.lung.attention_pooling import Bags, SliceAttention, decide, fit
from raymed.systems.lung.patient_model import PatientModel
from raymed.systems.lung.recipe import LungRecipe
from raymed.systems.lung.settings import HeadSettings
from raymed.systems.lung.slice_features import SliceFeatures

CLASSES, SLICES, WIDTH = 4, 12, 16


def seen(patients: int, ill: int, seed: int) -> SliceFeatures:
    """Of each patient `ill` slices show the class, and that they are ill; the others are healthy and noisy.

    Logits are those of a network that was taught every slice by its patient's label: of healthy ones it knows nothing.
    """
    generator = np.random.default_rng(seed)
    labels = np.repeat(generator.integers(CLASSES, size=patients), SLICES)
    features = generator.normal(size=(patients * SLICES, WIDTH)).astype(np.float32)
    shown = np.arange(patients * SLICES) % SLICES < ill
    features[shown, labels[shown]] += 2.0
    features[shown, CLASSES] += 4.0
    logits = np.where(shown[:, None], features[:, :CLASSES], generator.normal(size=(len(labels), CLASSES)))
    ids = np.repeat([f"p{number:03d}" for number in range(patients)], SLICES).astype(object)
    columns = {"patient": ids, "label": labels, "source": np.full(len(labels), "", object)}
    columns |= {"study": ids, "position": np.arange(len(labels)) % SLICES, "id": np.arange(len(labels)).astype(str)}
    return SliceFeatures(logits.astype(np.float32), features, columns)


def test_two_ill_slices_of_twelve_are_found_and_decide_better_than_the_mean() -> None:
    learned = PatientModel.of(seen(160, 2, 0), seen(120, 2, 1), HeadSettings(), bootstrap=200)
    ill = learned.weights[learned.slices["position"] < 2].sum() / 120
    assert ill > 0.6, "two slices of twelve would weigh 1/6"
    assert learned.counting < 6
    assert learned.attention.more_loss is not None and learned.attention.more_loss.high is not None
    assert learned.attention.more_loss.high < 0
    assert learned.verdict.startswith("attention has surely the lower loss")
    assert learned.mean.accuracy < learned.attention.accuracy


def test_where_nothing_can_be_learned_attention_is_not_called_better() -> None:
    learned = PatientModel.of(seen(80, 0, 0), seen(80, 0, 1), HeadSettings(), bootstrap=200)
    assert "attention has surely" not in learned.verdict


def test_an_untrained_head_takes_the_mean_and_a_patients_slices_weigh_one_whatever_their_number() -> None:
    head = SliceAttention(WIDTH, 8, 0.0).eval()
    generator = np.random.default_rng(0)
    features = generator.normal(size=(7, WIDTH)).astype(np.float32)
    said = generator.dirichlet(np.ones(CLASSES), 7).astype(np.float32)
    bags = Bags(np.array(["a", "b"]), np.array([0, 1]), np.array([0, 0, 1, 1, 1, 1, 1]), features, said)
    probabilities, weights = decide(head, bags)
    assert weights == pytest.approx([1 / 2] * 2 + [1 / 5] * 5)
    assert probabilities == pytest.approx(np.stack([said[:2].mean(0), said[2:].mean(0)]), abs=1e-6)


def test_the_head_does_not_depend_on_the_order_of_slices_and_is_the_same_for_the_same_seed() -> None:
    known = seen(24, 3, 0)
    bags, settings = Bags.of(known), HeadSettings(steps=20, dropout=0.0)
    mixed = np.random.default_rng(1).permutation(len(known.features))
    columns = {name: column[mixed] for name, column in known.columns.items()}
    other = Bags.of(SliceFeatures(known.logits[mixed], known.features[mixed], columns))
    probabilities, weights = decide(fit(bags, settings), bags)
    again, other_weights = decide(fit(other, settings), other)
    assert probabilities == pytest.approx(again, abs=1e-3)
    assert weights[mixed] == pytest.approx(other_weights, abs=1e-3)
    assert np.array_equal(probabilities, decide(fit(bags, settings), bags)[0])


@pytest.mark.parametrize("preset", ["small-cnn", "small-cnn+resnet18", "internvl-tiny"])
def test_features_are_what_the_last_layer_of_each_kind_of_network_decides_by(prepared: Prepared, preset: str) -> None:
    torch.manual_seed(0)
    recipe = LungRecipe.for_data(LabelTable.open("lung"), prepared.size, ModelSettings(preset=preset))
    module, rows = recipe.build().eval(), prepared.rows("val")
    looked = SliceFeatures.of((recipe, module), prepared, rows)
    with torch.no_grad():
        plain = recipe.predict(module, recipe.encode(prepared.read(rows), None))["logits"].numpy()
        assert looked.logits == pytest.approx(plain, abs=1e-4)
        features = torch.from_numpy(looked.features)
        if preset == "small-cnn":
            again = module.head[-1](features)  # type: ignore[index, operator]
        elif preset == "internvl-tiny":
            again = module.network.lm_head(features)[:, module.choices]  # type: ignore[union-attr, operator, index]
        else:
            first, second = module.members  # type: ignore[misc]
            parts = features.split([first.head[-1].in_features, second.head[-1].in_features], dim=1)
            each = torch.stack([member.head[-1](part) for member, part in zip((first, second), parts, strict=True)])
            again = each.log_softmax(-1).logsumexp(0)
    assert again.numpy() == pytest.approx(plain, abs=1e-4)


def test_the_job_compares_both_on_the_same_patients_and_leaves_what_each_slice_weighs(
    prepared: Prepared, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    recipe = LungRecipe.for_data(prepared.labels, prepared.size)
    recipe.export(recipe.build(), tmp_path / "model")
    job = script("weigh_slices")
    options = job.WeighSlices(
        model=str(tmp_path / "model"), data=prepared.folder.uri, out=str(tmp_path / "out"), storage=str(tmp_path / "runs")
    )
    outcome = job.main(options)
    mean, attention = outcome.data["choices"]
    assert (mean["method"], attention["method"]) == ("mean", "attention") and mean["more_loss"] is None
    assert "3 validation patients" in outcome.text and outcome.data["verdict"] in outcome.text
    weights = pd.read_csv(tmp_path / "out" / "slices.csv")
    assert weights.groupby("patient")["weight"].sum().tolist() == pytest.approx([1.0] * 3)
    assert load_file(tmp_path / "out" / "head.safetensors")["weigh.weight"].shape == (1, HeadSettings().hidden)
