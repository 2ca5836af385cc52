"""What is copied for a checkpoint stays as it was, whatever training does to the original."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from raymed.training.host_copy import HostCopy, page_locked, page_locked_copies

CPU = torch.device("cpu")


def test_views_of_one_buffer_are_copied_once_and_stay_views_of_one() -> None:
    """As torch writes them; else a checkpoint would hold a network's weights twice."""
    flat = torch.arange(6.0)
    state = OrderedDict(first=flat[:4].view(2, 2).t(), rest=[flat[4:], (flat, "text", None)])
    state._metadata = {"version": 1}  # type: ignore[attr-defined]
    before, copied = copy.deepcopy(state), HostCopy(CPU).of(state)
    flat.zero_()
    state["rest"].clear()
    assert copied._metadata == {"version": 1} and type(copied) is OrderedDict
    assert torch.equal(copied["first"], before["first"]) and copied["first"].stride() == (1, 2)
    assert torch.equal(copied["rest"][0], torch.tensor([4.0, 5.0])) and copied["rest"][1][1:] == ("text", None)
    assert copied["first"].untyped_storage().data_ptr() == copied["rest"][0].untyped_storage().data_ptr() != flat.data_ptr()


def test_a_copied_network_keeps_its_tied_weights_and_leaves_the_original_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    network.seen = ["what it shares"]  # type: ignore[assignment]
    before = copy.deepcopy(network.state_dict())
    copied = HostCopy(CPU).network(network)
    assert type(copied) is nn.Sequential and copied.seen is network.seen
    assert copied[2].weight is copied[0].weight is not network[0].weight
    network(torch.randn(4, 3)).sum().backward()
    with torch.no_grad():
        network[0].weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    assert copied[0].weight.grad is None and len(list(network.parameters())) == 5


def test_what_copies_take_counts_each_page_locked_block_as_torch_rounds_it_up() -> None:
    assert [page_locked(size) for size in (0, 1, 2, 3, 1024, 1025)] == [0, 1, 2, 4, 1024, 2048]
    # 300 bf16 weights are 600 bytes: 1024, twice; three blocks of 1200: 2048 each
    assert page_locked_copies([300], 0, 2) == 2 * 1024 + 3 * 2048
    assert page_locked_copies([300], 100, 2, workers=2) == 2 * (1024 + 128) + 3 * 1024, "half the moments"
