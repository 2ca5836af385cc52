"""What makes the host wait for its device, counted on a CPU, where nothing waits: values read, uploads from lists, and
DeepSpeed's waits by name."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raymed.data.micro_batches import MicroBatch
from raymed.data.record import Record
from raymed.models import precision
from raymed.recipes.recipe import Batch, PartlyFrozen, Recipe, TrainingPass
from raymed.training import engine
from raymed.training.process import prepare_process
from raymed.training.settings import TrainSettings
from raymed.training.zero import deepspeed_config

CUDA = torch.device("cuda")
ROOMS = ("raymed", "deepspeed")
ATEN = torch.ops.aten
READING = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN.is_nonzero, ATEN.unique_consecutive}
FILLING = {ATEN.masked_fill, ATEN.masked_fill_}  # a card reads the value, where that is a tensor
INDEXING = {ATEN.index, ATEN.index_put_, ATEN.index_put}  # by a mask: how many it names is read
UPLOADING = (torch.tensor, torch.as_tensor)
BEFORE = 2  # steps, from which on DeepSpeed measures
FETCHING = (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy)


class DeviceReads:
    """Within it `places` counts them, by the file and function of raymed or DeepSpeed that asks."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._modes = _Functions(self.places), _Kernels(self.places), _waits_by_name(self.places)

    def __enter__(self) -> DeviceReads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Functions(TorchFunctionMode):
    def __init__(self, places: Counter[str]) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function in FETCHING or (function in UPLOADING and options.get("device") is not None):
            self._places[_asking()] += 1
        return function(*arguments, **options)


class _Kernels(TorchDispatchMode):
    def __init__(self, places: Counter[str]) -> None:
        super().__init__()
        self._places = places

    def __torch_dispatch__(self, kernel: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        packet = kernel.overloadpacket
        masks = packet in INDEXING and any(each is not None and each.dtype == torch.bool for each in arguments[1])
        if packet in READING or masks or (packet in FILLING and isinstance(arguments[2], torch.Tensor)):
            self._places[_asking()] += 1
        return kernel(*arguments, **(options or {}))


def _waits_by_name(places: Counter[str]) -> Any:
    def synchronize(*_: Any) -> None:
        places[_asking()] += 1

    from deepspeed.accelerator import get_accelerator

    return patch.object(type(get_accelerator()), "synchronize", synchronize)


def _asking() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None:
        parts = Path(frame.f_code.co_filename).parts
        room = next((room for room in ROOMS if room in parts[:-1]), None)
        if room is not None and "tests" not in parts:
            return f"{'/'.join(parts[len(parts) - 1 - parts[::-1].index(room) :])} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def configure_as_on_a_card() -> None:
    """From now on engines of this process, which compute on the CPU, have DeepSpeed's configuration for a card that has
    bf16, and torch's fused AdamW."""
    precision.has_bf16 = lambda device: True
    engine.deepspeed_config = lambda settings, device, _, trained: deepspeed_config(settings, CUDA, 1, trained)


def reads_of_a_step(recipe: Recipe, records: Sequence[Record], zero_stage: Literal[1, 2, 3] = 1) -> dict[str, int]:
    """What a step over two micro-batches asks of a card. Call it in a process of its own, whose only worker is itself."""
    configure_as_on_a_card()
    settings = TrainSettings(precision="fp32", zero_stage=zero_stage)
    trained = engine.Engine(recipe, settings, 10, 0, torch.device("cpu"))
    shares = [(trained.prepare(recipe.encode(records, TrainingPass(0, 0))), MicroBatch(())) for _ in range(2)]
    for step_number in range(BEFORE):
        trained.step(shares, step_number)
    with DeviceReads() as step:
        trained.step(shares, BEFORE)
    with DeviceReads() as interval:
        assert len(trained.read()) == BEFORE + 1
    assert interval.places == {"raymed/training/step_sums.py figures": 1}, "the figures of all steps come in one transfer"
    return dict(step.places)


def alone() -> None:
    """A process group of one, in this process."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    prepare_process(torch.device("cpu"))
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())


class _Uploads(TorchFunctionMode):
    """Refuses to make a tensor on the device from numbers of the host, which waits for a device too."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function in UPLOADING and (options or {}).get("device") not in (None, torch.device("cpu")):
            raise AssertionError(f"{function.__name__} with device=")
        return function(*arguments, **(options or {}))


def pass_on_meta(recipe: Recipe, records: Sequence[Record]) -> None:
    """A forward and a backward pass of training and a prediction on tensors that have shapes and no values, so that whatever
    reads one fails."""
    device = torch.device("meta")
    module = recipe.build().to(device).train()
    without_autocast = patch("torch.autocast", lambda kind, **_: contextlib.nullcontext())  # `meta` has none
    with without_autocast, _Uploads():
        loss = recipe.compute_loss(module, recipe.encode(records, TrainingPass(0, 0)).to(device))
        torch.stack([term.total for term in loss.terms.values()]).sum().backward()
        with torch.no_grad():
            predicted = recipe.predict(module.eval(), recipe.encode(records, None).to(device))
    assert {value.device.type for value in predicted.values()} <= {"meta", "cpu"}
    trained = [parameter for group in recipe.groups(module) for parameter in group.parameters]
    assert any(parameter.grad is not None for parameter in trained)
    assert all(term.total.is_meta and term.total.shape == () for term in loss.terms.values())


ON_CUDA_BUILDS = pytest.mark.skipif(torch.version.cuda is None, reason="fake tensors on cuda take a build of torch for CUDA")


def pass_on_fake_cuda(recipe: Recipe, records: Sequence[Record]) -> None:
    """A forward pass of training and one of prediction on tensors that have a card's device and no values."""
    mode, device = FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda")
    module = recipe.build()
    held = recipe.frozen_part if isinstance(recipe, PartlyFrozen) else None  # perhaps outside of the network's parameters
    for part in [module] if held is None else [held.of(module), module]:
        on_fake_cuda(part, mode)
    training, other = (recipe.encode(records, each) for each in (TrainingPass(0, 0), None))
    with mode:
        loss = recipe.compute_loss(module.train(), fake(training, mode).to(device))
        predicted = recipe.predict(module.eval(), fake(other, mode).to(device))
    assert {term.total.device.type for term in loss.terms.values()} == {"cuda"}
    assert {value.device.type for value in predicted.values()} <= {"cuda", "cpu"}


def fake(batch: Batch, mode: FakeTensorMode) -> Batch:
    """The same with fake tensors, but for those that stay on the host."""
    names = batch.tensors.keys() - set(batch.on_host)
    return replace(batch, tensors=batch.tensors | {name: mode.from_tensor(batch.tensors[name]) for name in names})


def on_fake_cuda(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    with mode:
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    moved = mode.from_tensor(tensor.detach()).to("cuda")
                    table[name] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    return module
