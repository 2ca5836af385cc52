"""StarNet and its dual pyramid follow their definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel

from raymed.models.starnet import StarBlock, drop_path_rates
from raymed.models.starnet_pyramid import (
    AttentionBlock,
    PyramidStage,
    StarNetPyramidConfig,
    StarNetPyramidModel,
    place_waves,
)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.ReLU()])
def test_a_block_multiplies_an_activated_branch_by_a_plain_one(activation: nn.Module) -> None:
    block = StarBlock(8, 4, 0.0, activation).eval()
    x = 20 * torch.randn(2, 8, 9, 9)
    y = block.depthwise(x)
    star = activation(block.gate(y)) * block.value(y)
    torch.testing.assert_close(block(x), x + block.mix(block.project(star)))


def test_the_pyramids_blocks_are_not_capped_at_six() -> None:
    model = StarNetPyramidModel(StarNetPyramidConfig(width=8, depths=(1, 1, 1, 1)))
    assert {type(stage.blocks[0].activation) for stage in model.stages} == {nn.ReLU}


def test_drop_path_rises_linearly_over_all_stages() -> None:
    rates = drop_path_rates(0.1, (2, 2, 8, 3))
    assert [len(stage) for stage in rates] == [2, 2, 8, 3]
    assert [rate for stage in rates for rate in stage] == pytest.approx([0.1 * i / 14 for i in range(15)])


def test_the_pyramid_starts_as_described_without_a_cascade() -> None:
    model = StarNetPyramidModel(StarNetPyramidConfig())
    assert [round(float(stage.balance), 2) for stage in model.stages] == [0.3, 0.3, 0.4, 0.45]
    assert [None if stage.cascade is None else float(stage.cascade) for stage in model.stages] == [0, 0, 0, None]
    assert all(float(stage.adapter.scale) == pytest.approx(0.01) for stage in model.stages)
    assert model.stages[3].blocks[-1].drop_path.rate == pytest.approx(0.1)


def test_fusion_weighs_local_against_adapted_global_and_cascades_by_its_factor() -> None:
    stage = PyramidStage(8, 8, [0.0], StarNetPyramidConfig(width=8, depths=(1, 1, 1, 1)), last=False).eval()
    x = torch.randn(2, 8, 16, 16)
    plain, surround, fused = stage(x, x)
    share = torch.sigmoid(torch.tensor(0.3))
    torch.testing.assert_close(fused, (1 - share) * plain + share * stage.adapter(surround))
    with torch.no_grad():
        stage.cascade.fill_(0.5)
    torch.testing.assert_close(stage(x, x)[0], plain + 0.5 * fused)


def test_attention_with_padded_heads_is_plain_attention() -> None:
    block = AttentionBlock(24, 4)  # heads of 6, padded to 8
    x = torch.randn(2, 10, 24)
    query, key, value = block.qkv(block.norm_attention(x)).view(2, 10, 3, 4, 6).permute(2, 0, 3, 1, 4)
    attended = (query @ key.transpose(-1, -2) / 6**0.5).softmax(-1) @ value
    y = x + block.project(attended.transpose(1, 2).reshape(2, 10, 24))
    expected = y + block.fc2(F.gelu(block.fc1(block.norm_mlp(y))))
    torch.testing.assert_close(block(x), expected)


def test_every_place_has_waves_of_its_own() -> None:
    waves = place_waves(5, 7, 24, torch.device("cpu"))
    assert waves.shape == (35, 24) and len(torch.unique(waves, dim=0)) == 35
    row, column = waves.view(5, 7, 24)[..., :12], waves.view(5, 7, 24)[..., 12:]
    assert torch.equal(row, row[:, :1].expand(-1, 7, -1)) and torch.equal(column, column[:1].expand(5, -1, -1))


def test_a_saved_pyramid_is_opened_by_transformers(tmp_path: Path) -> None:
    model = StarNetPyramidModel(StarNetPyramidConfig(width=8, depths=(1, 1, 1, 1))).eval()
    model.save_pretrained(tmp_path)
    x = torch.randn(1, 3, 64, 64)
    again = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(x).pooler_output, model(x).pooler_output)


def test_224_pixels_do_not_need_the_memory_of_all_pairs_of_places() -> None:
    """3,136 places at stride 4, so 4 heads of 3,136 x 3,136 weights would be 150 MiB a picture."""
    block = AttentionBlock(24, 4)
    saved: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(torch.randn(1, 56 * 56, 24))
    assert max(saved) < 56 * 56 * 24 * 10
