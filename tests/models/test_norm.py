"""Batch norm statistics must not depend on how a global batch is divided over workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from raymed.models.norm import (
    StepBatchNorm,
    batch_norms,
    computing,
    convert_batch_norms,
    settle_batch_norms,
    step_statistics,
)


def _settle_alone(module: nn.Module) -> None:
    norms = batch_norms(module)
    settle_batch_norms(norms, step_statistics(norms))


def _network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return convert_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4))))


def test_one_micro_batch_leaves_the_same_state_as_ordinary_batch_norm() -> None:
    ordinary, ours = nn.BatchNorm2d(3), StepBatchNorm(3)
    for seed in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 3 + 1
        torch.testing.assert_close(ours(x), ordinary(x))
        _settle_alone(ours)
    for (name, expected), (_, value) in zip(ordinary.state_dict().items(), ours.state_dict().items(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)


def test_forward_alone_does_not_touch_the_running_statistics() -> None:
    norm = StepBatchNorm(3)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(torch.randn(4, 3, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_two_workers_leave_the_same_state_as_one_that_accumulates() -> None:
    halves = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    alone = _network()
    for half in halves:
        alone(half)
    _settle_alone(alone)

    workers = [_network(), _network()]
    for worker, half in zip(workers, halves, strict=True):
        worker(half)
    summed = sum(step_statistics(batch_norms(worker)) for worker in workers)
    for worker in workers:
        settle_batch_norms(batch_norms(worker), summed)
    for worker in workers:
        for name, expected in alone.state_dict().items():
            torch.testing.assert_close(worker.state_dict()[name], expected, msg=name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_groups_in_one_micro_batch_are_normalised_as_one_after_the_other(layout: torch.memory_format) -> None:
    """Forward, backward and statistics; two pictures a pack."""
    draw = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(10, 3, 5, 4, generator=draw).clone(memory_format=layout) for _ in range(2))
    found = []
    for sizes, parts in (([10], (3, 2)), ([6, 4], ())):
        norm, inputs = StepBatchNorm(3), x.clone(memory_format=layout).requires_grad_()
        outputs = []
        for piece in inputs.split(sizes):
            with computing([norm], counts=True, spans=False, parts=parts):
                outputs.append(norm(piece))
        y = torch.cat(outputs)
        gradients = torch.autograd.grad(y, [inputs, *norm.parameters()], upstream)
        assert y.is_contiguous(memory_format=layout)
        _settle_alone(norm)
        found.append([y, *gradients, norm.running_mean, norm.running_var])
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, atol=0, rtol=0)


def test_a_filler_micro_batch_changes_nothing_even_on_a_worker_with_nothing_else() -> None:
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with computing(batch_norms(network), counts=False, spans=False):
        network(torch.randn(2, 3, 8, 8))
    _settle_alone(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network(torch.randn(2, 3, 8, 8))
    _settle_alone(network)
    assert not torch.equal(network.state_dict()["1.running_mean"], before["1.running_mean"])


def test_conversion_keeps_weights_state_and_names() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01))
    plain(torch.randn(2, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    expected, names = plain.eval()(x), list(plain.state_dict())
    converted = convert_batch_norms(plain)
    assert len(batch_norms(converted)) == 1 and batch_norms(converted)[0].momentum == 0.01
    assert list(converted.state_dict()) == names
    torch.testing.assert_close(converted(x), expected)


def test_a_network_without_batch_norm_has_nothing_to_sum() -> None:
    assert not len(step_statistics([]))
    settle_batch_norms([], torch.empty(0))


def test_bf16_weights_with_float32_statistics_compute_in_training_and_evaluation() -> None:
    norm = StepBatchNorm(3)
    norm.weight.data, norm.bias.data = norm.weight.data.bfloat16(), norm.bias.data.bfloat16()  # as DeepSpeed leaves it
    x = torch.randn(4, 3, 5, 5)
    for mode in (True, False):
        y = norm.train(mode)(x.bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), StepBatchNorm(3).train(mode)(x), atol=0.05, rtol=0.05)


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_group_that_spans_workers_is_normalised_as_one_that_does_not(
    group: None, kind: torch.dtype, affine: bool, layout: torch.memory_format
) -> None:
    """Forward, backward and statistics, here with one worker; tests/training/test_workers.py has several."""
    draw = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(6, 3, 5, 4, generator=draw).to(kind) for _ in range(2))
    x = x * 2 + 30  # variances that would be lost in a sum of squares of single precision
    found = []
    for spans in (False, True):
        norm, inputs = StepBatchNorm(3, affine=affine), x.clone(memory_format=layout).requires_grad_()
        if affine:
            norm.weight.data, norm.bias.data = torch.tensor([0.5, -2.0, 1.0]), torch.tensor([0.0, 1.0, -1.0])
        with computing([norm], counts=True, spans=spans):
            y = norm(inputs)
            gradients = torch.autograd.grad(y, [inputs, *norm.parameters()], upstream)
        assert all(tensor.is_contiguous(memory_format=layout) for tensor in (y, gradients[0]))
        _settle_alone(norm)
        found.append([y, *gradients, norm.running_mean, norm.running_var])
    tolerance = {"atol": 2e-5, "rtol": 2e-4} if kind == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for ordinary, spanning in zip(*found, strict=True):
        torch.testing.assert_close(spanning, ordinary, **tolerance)
