"""Features are the hidden states that transformers shows, pooled."""

from __future__ import annotations

import pytest
import torch
from transformers import InternVLVisionConfig, ViTConfig

from raymed.errors import UserError
from raymed.models import precision
from raymed.models.backbones import InputNorm, make_backbone
from raymed.models.features import FeatureExtractor, FeatureSettings
from raymed.models.vision_tower import VisionTower

SIZE = 28
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": SIZE}
CONFIGS = {
    "internvl_vision": InternVLVisionConfig(**SHAPE, attention_bias=True, layer_scale_init_value=1.0),
    "vit": ViTConfig(**SHAPE, patch_size=14),
}
PIXELS = torch.randint(0, 256, (4, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tower_of(kind: str) -> VisionTower:
    torch.manual_seed(0)
    network = make_backbone(CONFIGS[kind], SIZE)
    return VisionTower(CONFIGS[kind], network.state_dict(), {}, kind)


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize(("pooling", "tokens"), [("mean", slice(1, None)), ("cls", slice(0, 1)), ("all", slice(None))])
def test_a_sweep_gives_each_layers_pooled_hidden_state(kind: str, pooling: str, tokens: slice) -> None:
    tower = tower_of(kind)
    settings = FeatureSettings(layer=-1, sweep=4, pooling=pooling, normalise=False)  # type: ignore[arg-type]
    found = FeatureExtractor(tower, settings)(PIXELS)
    output = tower.build()(InputNorm()(PIXELS, torch.float32), output_hidden_states=True)
    states = [*output.hidden_states[:-1], output.last_hidden_state]  # the last one behind the final norm
    assert found.shape == (4, 4, 32)
    for layer, state in enumerate(states):
        torch.testing.assert_close(found[layer], state[:, tokens].mean(1), msg=f"layer {layer}")


def test_an_inner_layer_is_computed_without_those_behind_it() -> None:
    tower = tower_of("internvl_vision")
    every = FeatureExtractor(tower, FeatureSettings(sweep=4))(PIXELS)
    inner = FeatureExtractor(tower, FeatureSettings(layer=-2))
    assert (inner.layers, len(inner.blocks)) == ((2,), 2)
    torch.testing.assert_close(inner(PIXELS)[0], every[2])
    torch.testing.assert_close(every.norm(dim=2), torch.ones(4, 4))


def test_bf16_turns_no_feature_far() -> None:
    tower = tower_of("internvl_vision")
    exact, rough = (FeatureExtractor(tower, FeatureSettings(precision=each))(PIXELS) for each in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert (exact * rough).sum(-1).min() > 0.999


def test_where_there_are_no_instructions_for_bf16_features_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = tower_of("internvl_vision")
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    found = FeatureExtractor(tower, FeatureSettings(precision="bf16")).on(torch.device("cpu"))
    assert found(PIXELS).dtype == torch.float32 and {each.dtype for each in found.parameters()} == {torch.float32}


def test_layers_that_a_vit_does_not_have_are_named() -> None:
    assert FeatureSettings(layer=-2, sweep=2).layers(24) == (22, 23)
    for wrong in (FeatureSettings(layer=25), FeatureSettings(layer=-26), FeatureSettings(layer=1, sweep=3)):
        with pytest.raises(UserError, match=r"0 .* to 24"):
            wrong.layers(24)
