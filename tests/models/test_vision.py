"""Image backbones: presets, input, local folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ResNetForImageClassification, ViTConfig, ViTForImageClassification

from raymed.errors import UserError
from raymed.models import backbones, classifiers
from raymed.models.settings import ModelSettings

CODES = list("0123")
EXPECTED = {  # feature width and millions of parameters, as published for 3 channels, without the 1000-class layer
    "resnet18": (512, 11.177),
    "resnet34": (512, 21.285),
    "resnet50": (2048, 23.508),
    "resnet101": (2048, 42.500),
    "resnet152": (2048, 58.144),
    "convnext-tiny": (768, 27.820),
    "convnext-small": (768, 49.455),
    "convnext-base": (1024, 87.566),
    "convnext-large": (1536, 196.230),
    "efficientnet-b0": (1280, 4.008),
    "efficientnet-b1": (1280, 6.513),
    "efficientnet-b2": (1408, 7.701),
    "efficientnet-b3": (1536, 10.696),
    "efficientnet-b4": (1792, 17.549),
    "efficientnet-b5": (2048, 28.341),
    "efficientnet-b6": (2304, 40.736),
    "efficientnet-b7": (2560, 63.787),
    "vit": (768, 85.799 - 0.197 * 0.768 + 0.005 * 0.768),  # positions for 32 px, not 224
    "starnet_s1": (192, 2.869 - 0.193),
    "starnet_s2": (256, 3.682 - 0.257),
    "starnet_s3": (256, 5.751 - 0.257),
    "starnet_s4": (256, 7.483 - 0.257),
    "starnet_dual_pyramid_rcf": (192, 3.644),  # not published: as counted, so that a change is seen
    "internvit-300m": (1024, 304.012 - 1.025 * 1.024 + 0.005 * 1.024),  # positions for 28 px, not 448
}


def _pixels(rows: int = 2, channels: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (rows, channels, size, size), dtype=torch.uint8)


@pytest.mark.parametrize(("name", "width", "millions"), [(name, *expected) for name, expected in EXPECTED.items()])
def test_presets_have_the_published_width_and_number_of_parameters(name: str, width: int, millions: float) -> None:
    with torch.device("meta"):
        module = classifiers.build(ModelSettings(preset=name), CODES, 28 if name.startswith("intern") else 32)
    assert sum(p.numel() for p in module.backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.002)
    assert module.head[2].in_features == width


def test_tiny_stays_tiny() -> None:
    assert sum(p.numel() for p in classifiers.build(ModelSettings(), CODES, 32).parameters()) < 100_000


@pytest.mark.parametrize(
    "name",
    [
        *("tiny", "small-cnn", "resnet18", "resnet50", "convnext-tiny", "efficientnet-b0", "efficientnet-lite0"),
        *("vit-small", "starnet_s1", "starnet_dual_pyramid_rcf"),
    ],
)
def test_every_parameter_of_a_preset_is_used_and_pictures_make_a_difference(name: str) -> None:
    module = classifiers.build(ModelSettings(preset=name), CODES, 64).train()
    pixels = _pixels(size=64)
    assert float(module.features(pixels).std(0).mean()) > 0.01, "pictures look the same to random weights"
    logits = module(pixels)["logits"]
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_grey_and_rgb_of_the_same_picture_give_the_same_logits() -> None:
    module = classifiers.build(ModelSettings(), CODES, 32).eval()
    grey = _pixels()
    torch.testing.assert_close(module(grey)["logits"], module(grey.expand(-1, 3, -1, -1))["logits"])


def test_input_is_normalised_by_imagenet_mean_and_deviation() -> None:
    pixels = _pixels(channels=3)
    mean, std = torch.tensor(backbones.IMAGENET_MEAN).view(3, 1, 1), torch.tensor(backbones.IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(backbones.InputNorm()(pixels, torch.float32), (pixels / 255 - mean) / std)


def test_input_constants_survive_a_cast_to_bf16() -> None:
    pixels = _pixels(channels=3)
    exact = backbones.InputNorm()(pixels, torch.float32)
    torch.testing.assert_close(backbones.InputNorm().bfloat16()(pixels, torch.bfloat16), exact.bfloat16())


def test_patches_must_divide_the_picture() -> None:
    with pytest.raises(UserError, match="96 or 112"):
        classifiers.check(ModelSettings(preset="vit-small"), CODES, 100)


def test_a_classification_checkpoint_gives_its_backbone(tmp_path: Path) -> None:
    config = backbones.PRESETS["tiny"](32)
    config.num_labels = 1000
    saved = ResNetForImageClassification(config)
    saved.save_pretrained(tmp_path)
    module = classifiers.build(ModelSettings(path=str(tmp_path)), CODES, 32)
    for name, value in saved.resnet.state_dict().items():
        assert torch.equal(module.backbone.state_dict()[name], value), name


def test_a_checkpoint_sees_pictures_as_it_was_trained_to_also_once_it_is_exported(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    told = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(told))
    module = classifiers.build(ModelSettings(path=str(tmp_path / "vit")), CODES, 32)
    (tmp_path / "out").mkdir()
    module.export(tmp_path / "out")
    for found in (module, classifiers.load(tmp_path / "out", CODES, 32)):
        grey = found.normalise(torch.full((1, 1, 32, 32), 255, dtype=torch.uint8), torch.float32)
        torch.testing.assert_close(grey, torch.ones(1, 3, 32, 32))
    (tmp_path / "vit" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="does not say how"):
        classifiers.build(ModelSettings(path=str(tmp_path / "vit")), CODES, 32)


def test_a_vit_checkpoint_works_at_another_size(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    module = classifiers.build(ModelSettings(path=str(tmp_path)), CODES, 96)
    assert module(_pixels(size=96))["logits"].shape == (2, 4)


def test_wrong_keys_of_each_kind_are_named(tmp_path: Path) -> None:
    ResNetForImageClassification(backbones.PRESETS["tiny"](32)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state["resnet.surplus.weight"] = torch.zeros(1)
    del state["resnet.embedder.embedder.normalization.bias"]
    kernel = "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight"
    state[kernel] = state[kernel][:3]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        classifiers.build(ModelSettings(path=str(tmp_path)), CODES, 32)
    message = str(error.value)
    assert "1 missing: embedder.embedder.normalization.bias" in message
    assert "surplus.weight" in message and "1 of another shape: encoder.stages.1" in message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"preset": "resnet19"}, "'resnet19' is unknown; there are tiny"),
        ({"preset": "tiny", "language_lora": 4}, "model.language_lora is for InternVL"),
        ({"preset": "tiny", "attention": "eager"}, "no attention"),
        ({"path": "nowhere"}, "there is no model 'nowhere'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        classifiers.check(ModelSettings(**settings), CODES, 32)  # type: ignore[arg-type]
