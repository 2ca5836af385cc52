"""Freezing, LoRA and drop path train what they say and nothing else."""

from __future__ import annotations

import weakref

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn

from raymed.errors import UserError
from raymed.models import classifiers, internvl
from raymed.models.adapt import DropPath, merged_state
from raymed.models.settings import ModelSettings

CODES = list("0123")


def _internvl(**settings: object) -> internvl.InternVLClassifier:
    torch.manual_seed(0)
    module = classifiers.build(ModelSettings(preset="internvl-tiny", **settings), CODES, 56)  # type: ignore[arg-type]
    assert isinstance(module, internvl.InternVLClassifier)
    return module


def _count(module: nn.Module, trainable: bool = True) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def test_drop_path_keeps_the_expectation_drops_whole_samples_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(20_000, 2, 3))
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(y.amin((1, 2)), y.amax((1, 2)))
    assert float(y.mean()) == pytest.approx(1, abs=0.02)
    x = torch.randn(4, 2, 3)
    assert drop.eval()(x) is x


@pytest.mark.parametrize(("preset", "size"), [("vit-small", 32), ("internvit-300m", 28)])
def test_drop_path_rises_linearly_over_both_branches_of_all_blocks(preset: str, size: int) -> None:
    with torch.device("meta"):
        module = classifiers.build(ModelSettings(preset=preset, drop_path=0.1), CODES, size)
    rates = [block.dropout.rate for block in _blocks(module)]
    assert rates == pytest.approx([0.1 * i / (len(rates) - 1) for i in range(len(rates))])
    if preset == "internvit-300m":
        assert rates == [block.attention.projection_dropout.rate for block in _blocks(module)]


def _blocks(module: nn.Module) -> nn.ModuleList:
    from raymed.models.adapt import blocks_of

    return blocks_of(module.image_backbone)  # type: ignore[arg-type]


def test_drop_path_of_a_fully_dropped_branch_leaves_the_residual_alone() -> None:
    module = _internvl(drop_path=0.5)
    tower = module.image_backbone
    for block in _blocks(module):
        block.dropout.rate = block.attention.projection_dropout.rate = 1 - 1e-9
    x = torch.randn(2, 3, 56, 56)
    dropped = tower.train()(x).last_hidden_state
    torch.testing.assert_close(dropped, tower.embeddings(x))


def test_drop_path_on_a_network_that_has_none_is_refused() -> None:
    with pytest.raises(UserError, match="drop_path has no effect on preset resnet18"):
        classifiers.check(ModelSettings(preset="resnet18", drop_path=0.1), CODES, 64)


def test_freezing_leaves_exactly_the_other_parts_trainable() -> None:
    whole = _internvl()
    model = whole.network.model
    parts = {
        "freeze_vision": _count(model.vision_tower),
        "freeze_projector": _count(model.multi_modal_projector),
        "freeze_language": _count(model.language_model) + _count(whole.network.lm_head),
    }
    for setting, frozen in parts.items():
        assert _count(_internvl(**{setting: True})) == _count(whole) - frozen, setting
    partly = _internvl(freeze_vision=True, trainable_blocks=1)
    last = partly.network.model.vision_tower.encoder.layer[-1]
    assert _count(partly.network.model.vision_tower) == _count(last) == _count(last, trainable=False)


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(UserError, match="nothing is left to train"):
        _internvl(freeze_vision=True, freeze_projector=True, freeze_language=True)


def test_frozen_parts_stay_in_evaluation_mode_while_training() -> None:
    torch.manual_seed(0)
    module = classifiers.build(ModelSettings(preset="tiny", freeze_vision=True), CODES, 32).train()
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    module(pixels=torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8))
    assert not module.backbone.training and module.head.training
    assert all(torch.equal(value, before[name]) for name, value in module.backbone.state_dict().items())


def test_lora_trains_its_adapters_alone_and_starts_as_the_identity() -> None:
    pixels = torch.randint(0, 256, (2, 1, 56, 56), dtype=torch.uint8)
    plain = _internvl().eval()
    module = _internvl(vision_lora=4, language_lora=2, freeze_projector=True).eval()
    module.load_state_dict(
        {key: value for key, value in module.state_dict().items() if "lora_" in key}
        | {key: plain.state_dict()[key.replace(".base_layer", "")] for key in module.state_dict() if "lora_" not in key}
    )
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    vision, hidden, inner = 2, 64, 347
    expected_vision = vision * 4 * (4 * (64 + 64) + 2 * (64 + 256))
    expected_language = 2 * 2 * (4 * (hidden + hidden) + 3 * (hidden + inner))
    assert _count(module) == expected_vision + expected_language
    torch.testing.assert_close(module(pixels)["logits"], plain(pixels)["logits"])


def test_merged_lora_weights_compute_the_same_under_the_plain_names() -> None:
    module = _internvl(vision_lora=4, language_lora=2).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    merged = _internvl().eval()
    merged.load_state_dict(merged_state(module))
    pixels = torch.randint(0, 256, (2, 1, 56, 56), dtype=torch.uint8)
    torch.testing.assert_close(merged(pixels)["logits"], module(pixels)["logits"], rtol=1e-4, atol=1e-5)


def test_layers_are_merged_one_after_the_other_so_that_a_full_gpu_has_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    merge, deltas = Linear.get_delta_weight, list[weakref.ref[torch.Tensor]]()

    def watched(layer: Linear, adapter: str) -> torch.Tensor:
        assert all(delta() is None for delta in deltas)
        delta: torch.Tensor = merge(layer, adapter)
        deltas.append(weakref.ref(delta))
        return delta

    monkeypatch.setattr(Linear, "get_delta_weight", watched)
    merged_state(_internvl(vision_lora=2, language_lora=2))
    assert len(deltas) > 2


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    pixels = torch.randint(0, 256, (2, 1, 56, 56), dtype=torch.uint8)
    gradients = []
    for checkpointing in (False, True):
        module = _internvl(gradient_checkpointing=checkpointing).train()
        module(pixels, torch.tensor([1, 3]))["language_loss"].sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"trainable_blocks": 2}, "freeze_vision"),
        ({"vision_lora": 2, "freeze_vision": True}, "freeze_vision"),
        ({"language_lora": 2, "freeze_language": True}, "freeze_language"),
        ({"drop_path": 0.1, "freeze_vision": True}, "no effect"),
        ({"drop_path": 1.0}, "below 1"),
        ({"vision_lora": -1}, "negative"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ModelSettings(**settings)  # type: ignore[arg-type]
