"""EfficientNet-Lite0 computes what its published weights were trained for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from raymed.errors import UserError
from raymed.models import classifiers, efficientnet_lite
from raymed.models.settings import ModelSettings

CODES = ("0", "1", "2", "3")
LITE = ModelSettings(preset="efficientnet-lite0")


def _photograph(name: str) -> torch.Tensor:
    """The middle of a photograph, uint8 [1, 3, 224, 224]."""
    picture = Image.fromarray(load_sample_image(name))
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    middle = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(middle)).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize(("photograph", "imagenet"), [("flower.jpg", 985), ("china.jpg", 698)])  # a daisy, a palace
def test_a_photograph_is_recognised_with_the_published_weights(photograph: str, imagenet: int) -> None:
    published = torch.load(efficientnet_lite.installed_weights(), weights_only=True)
    module = classifiers.build(LITE, CODES, 224).eval()
    with torch.no_grad():
        logits = module.features(_photograph(photograph)) @ published["_fc.weight"].T + published["_fc.bias"]
    assert int(logits.argmax()) == imagenet


def test_it_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in classifiers.build(LITE, CODES, 32).backbone.parameters()) == 4_652_008 - 1000 * 1281


def test_an_exported_classifier_predicts_the_same_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = classifiers.build(LITE, CODES, 64).eval()
    module.export(tmp_path)
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "not_installed_here")
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    assert torch.equal(classifiers.load(tmp_path, CODES, 64).eval()(pixels)["logits"], module(pixels)["logits"])


def test_a_missing_package_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "not_installed_here")
    with pytest.raises(UserError, match="pip install not-installed-here"):
        classifiers.check(LITE, CODES, 64)
