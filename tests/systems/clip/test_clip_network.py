"""The CLIP classifier: the guide's smoke test, texts encoded as seldom as possible, bounded temperature, local weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from text_models import write_bert, write_clip
from transformers import InternVLVisionConfig, InternVLVisionModel, ResNetModel

from raymed.errors import UserError
from raymed.models.backbones import PRESETS
from raymed.models.settings import ClipModelSettings
from raymed.models.starnet import StarNetModel
from raymed.systems.clip import network as clip

NAMES = ("normal", "bacterial", "viral")
TEXTS = (("正常的肺", "a normal lung"), ("细菌性肺炎",), ("viral pneumonia",))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_bert(folder / "bert-base-chinese")
    write_clip(folder / "clip")
    return folder


def _build(size: int = 32, **settings: object) -> clip.ClipClassifier:
    torch.manual_seed(0)
    chosen = {"image_encoder": "tiny", "text_encoder": "characters", "embed_dim": 16} | settings
    return clip.build(ClipModelSettings(**chosen), NAMES, TEXTS, size)  # type: ignore[arg-type]


def _pixels(rows: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 1, size, size), dtype=torch.uint8)


class _Counted:
    """How many texts a text encoder is given."""

    def __init__(self, module: clip.ClipClassifier) -> None:
        self.texts = 0
        module.text_encoder.register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.texts += len(inputs[0])


@pytest.mark.parametrize("name", ["starnet_dual_pyramid_rcf", "starnet_s1", "resnet18", "vit-small", "efficientnet-b0"])
def test_smoke_image_encoder(name: str) -> None:
    module = _build(64, image_encoder=name).eval()
    features = module.picture_features(module.image_features(_pixels(2, 64)))
    assert features.shape == (2, 16)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", ["characters", "bert-base-chinese", "clip"])
def test_smoke_text_encoder(name: str, models: Path) -> None:
    module = _build(text_encoder=name if name == "characters" else str(models / name)).eval()
    features = module.prompt_features()
    assert features.shape == (4, 16)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))


def test_smoke_complete_model(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMED_MODELS", str(models))
    module = clip.build(ClipModelSettings(), NAMES, TEXTS, 64).train()
    output = module(_pixels(2, 64))
    assert output["logits"].shape == (2, 3) and output["prompt_logits"].shape == (2, 4)
    assert 1 / float(output["scale"].detach()) == pytest.approx(0.07)
    output["logits"].square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_logits_are_scaled_cosines_and_prompts_stand_for_their_class_by_the_direction_of_their_mean() -> None:
    module = _build().eval()
    pixels = _pixels()
    output, pictures, prompts = (
        module(pixels),
        module.picture_features(module.image_features(pixels)),
        module.prompt_features(),
    )
    torch.testing.assert_close(output["prompt_logits"], pictures @ prompts.T / 0.07)
    classes = torch.stack([F.normalize(prompts[:2].mean(0), dim=0), prompts[2], prompts[3]])
    torch.testing.assert_close(output["logits"], pictures @ classes.T / 0.07)


def test_vit_is_pooled_by_its_class_token() -> None:
    module = _build(image_encoder="vit-small").eval()
    pixels = _pixels()
    inputs = module.normalise(pixels, torch.float32)
    token = module.image_encoder(inputs, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    expected = F.normalize(module.image_projection(token), dim=1)
    torch.testing.assert_close(module.picture_features(module.image_features(pixels)), expected)


def test_class_texts_are_encoded_once_a_step_and_once_for_all_pictures_when_predicting() -> None:
    module, pixels = _build(), _pixels(8)
    counted = _Counted(module)
    module.train()
    for step in range(1, 4):
        module(pixels)
        assert counted.texts == 4 * step, "four prompts a step, whatever the batch"
    module.eval()
    with torch.no_grad():
        for _ in range(5):
            module(pixels)
    assert counted.texts == 4 * 4


def test_a_frozen_text_encoder_reads_the_texts_once_at_all_and_its_projection_still_learns() -> None:
    module, pixels = _build(freeze_text=True), _pixels()
    counted = _Counted(module)
    before = module.prompt_features().detach()
    optimizer = torch.optim.SGD(module.text_projection.parameters(), lr=1.0)
    for _ in range(3):
        module.train()
        assert not module.text_encoder.training
        module(pixels)["logits"][:, 0].sum().backward()
        optimizer.step()
        with torch.no_grad():
            module.eval()(pixels)
    assert counted.texts == 4
    assert not torch.allclose(module.prompt_features(), before)
    assert all(parameter.grad is None for parameter in module.text_encoder.parameters())


@pytest.mark.parametrize("freeze_text", [False, True])
def test_other_weights_are_not_judged_by_texts_that_the_old_ones_encoded(freeze_text: bool) -> None:
    module, pixels = _build(freeze_text=freeze_text).eval(), _pixels()
    torch.manual_seed(1)
    other = clip.build(
        ClipModelSettings("tiny", text_encoder="characters", embed_dim=16, freeze_text=freeze_text), NAMES, TEXTS, 32
    ).eval()
    with torch.no_grad():
        old, expected = module(pixels)["logits"], other(pixels)["logits"]
        module.load_state_dict(other.state_dict())
        assert not torch.allclose(old, expected)
        torch.testing.assert_close(module(pixels)["logits"], expected)
        module.double().float()  # a change of type or device drops them as well
        torch.testing.assert_close(module(pixels)["logits"], expected)


def test_predicting_leaves_the_mode_of_every_layer_alone() -> None:
    for mode in (True, False):
        module = _build().train(mode)
        modes = [each.training for each in module.modules()]
        with torch.no_grad():
            module(_pixels())
        assert [each.training for each in module.modules()] == modes


def test_the_temperature_learns_and_stays_within_its_bound() -> None:
    module = _build()
    module.logit_scale.data.fill_(math.log(100) + 1)
    scale = module(_pixels())["scale"]
    assert float(scale) == pytest.approx(100)
    scale.backward()
    assert float(module.logit_scale.grad) > 0, "the way back is open"
    module.logit_scale.grad = None
    (-module(_pixels())["scale"]).backward()
    assert float(module.logit_scale.grad) == 0, "the way on is not"
    module.logit_scale.data.fill_(1.0)
    (-module(_pixels())["scale"]).backward()
    assert float(module.logit_scale.grad) == pytest.approx(-math.e)


@pytest.mark.parametrize("freeze_text", [False, True])
def test_autocast_leaves_logits_in_full_precision(freeze_text: bool) -> None:
    module, pixels = _build(freeze_text=freeze_text).train(), _pixels()
    with torch.autocast("cpu", torch.bfloat16):
        output = module(pixels)
    assert {value.dtype for value in output.values()} == {torch.float32}
    with torch.no_grad():
        assert module.eval()(pixels)["logits"].dtype == torch.float32


def test_local_image_weights_are_taken_and_others_refused(tmp_path: Path) -> None:
    saved = ResNetModel(PRESETS["tiny"](32))
    saved.save_pretrained(tmp_path / "tiny")
    module = _build(image_weights=str(tmp_path / "tiny"))
    state = module.image_encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.state_dict().items())
    StarNetModel(PRESETS["starnet_s1"](32)).save_pretrained(tmp_path / "star")
    assert _build(64, image_encoder="starnet_s1", image_weights=str(tmp_path / "star"))
    with pytest.raises(UserError, match=r"is not a resnet18: it has hidden_sizes \[16, 32, 64\] in place of \[64, 128"):
        _build(image_encoder="resnet18", image_weights=str(tmp_path / "tiny"))
    with pytest.raises(UserError, match="type 'resnet', not 'vit'"):
        _build(image_encoder="vit", image_weights=str(tmp_path / "tiny"))
    with pytest.raises(UserError, match=r"no model 'nowhere\.safetensors'"):
        _build(image_weights="nowhere.safetensors")


def test_internvit_comes_from_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="internvit needs its folder"):
        _build(28, image_encoder="internvit")
    config = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=28, attention_bias=True
    )
    saved = InternVLVisionModel(config)
    saved.save_pretrained(tmp_path)
    module = _build(28, image_encoder="internvit", image_weights=str(tmp_path))
    assert torch.equal(module.image_encoder.state_dict()["embeddings.cls_token"], saved.embeddings.cls_token)
    assert module(_pixels(2, 28))["logits"].shape == (2, 3)


def test_unknown_encoders_and_sizes_are_refused_before_weights_are_read() -> None:
    def check(size: int = 32, **settings: object) -> None:
        clip.check(ClipModelSettings(**{"text_encoder": "characters"} | settings), NAMES, TEXTS, size)  # type: ignore[arg-type]

    with pytest.raises(UserError, match="'resnet19' is unknown; there are tiny"):
        check(image_encoder="resnet19")
    with pytest.raises(UserError, match="take 96 or 112 pixels"):
        check(100, image_encoder="vit")
    with pytest.raises(UserError, match="no model 'bert-base-chinese'"):
        check(text_encoder="bert-base-chinese")
    for wrong in ({"temperature": 0.0}, {"embed_dim": 0}, {"text_lr_scale": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ClipModelSettings(**wrong)  # type: ignore[arg-type]
