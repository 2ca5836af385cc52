import math

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2RotaryEmbedding

from raymed.systems.unimedvl.embeddings import TimeEmbedder, grid_embedding, rotary, sinusoids


def test_the_first_half_of_a_grid_embedding_tells_the_column_and_the_second_the_row():
    side, width = 70, 16
    row, column = 3, 5
    embedding = grid_embedding(torch.tensor([row * side + column]), side, width)[0].tolist()
    expected = [
        function(value * 10_000 ** (-index / 4))
        for value in (column, row)
        for function in (math.sin, math.cos)
        for index in range(4)
    ]
    assert embedding == pytest.approx(expected, abs=1e-6)


def test_a_place_has_the_same_embedding_in_a_grid_of_another_side():
    small = grid_embedding(torch.tensor([2 * 32 + 7]), 32, 64)
    assert torch.equal(small, grid_embedding(torch.tensor([2 * 64 + 7]), 64, 64))


def test_time_goes_in_as_0_to_1_with_cosines_first():
    sines, cosines = sinusoids(torch.tensor([0.75]), 256)
    assert cosines[0, 0].item() == pytest.approx(math.cos(0.75))
    assert sines[0, 127].item() == pytest.approx(math.sin(0.75 * 10_000 ** (-127 / 128)))
    embedder = TimeEmbedder(8)
    taken = {}
    embedder.mlp[0].register_forward_pre_hook(lambda _, inputs: taken.update(first=inputs[0]))
    assert embedder(torch.tensor([0.0, 0.75])).shape == (2, 8)
    assert torch.equal(taken["first"][1], torch.cat([cosines, sines], 1)[0])


def test_rotary_positions_are_qwen2s():
    config = Qwen2Config(hidden_size=64, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    positions = torch.tensor([[0, 1, 1, 1, 2, 4900]])
    cosines, sines = Qwen2RotaryEmbedding(config)(torch.zeros(1), positions)
    ours = rotary(positions, 16, 1e6)
    assert torch.equal(ours[0][:, 0], cosines)
    assert torch.equal(ours[1][:, 0], sines)
