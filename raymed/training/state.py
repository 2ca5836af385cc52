"""The whole state of a training run in one piece, by parameter name: whatever ZeRO stage and number of workers wrote it.

DeepSpeed's checkpoints are shards of flat buffers that fit only the stage and the number of workers that wrote them. Here
they are put together again, and cut for the engine at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from raymed.compat.deepspeed import link_moments, partitions, set_whole, shape_of, shard_classes
from raymed.errors import UserError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

WHOLE = "training_state.pt"  # in place of shards: a state that was put together before
SHARDS = "state"  # folder of DeepSpeed's shards within a checkpoint
AVERAGED = "ema.safetensors"  # whole, in checkpoints of before they were shared out among workers
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = 1 + len(MOMENTS)  # of buffers in a shard
EMA = "averaged"  # beside them in a shard, where there are any

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainingState:
    """All that training goes on from, on the CPU, in tensors and plain values only.

    ``torch.save(vars(state), file)`` writes a file that ``TrainingState(**torch.load(file, weights_only=True))`` reads.

    Attributes:
        module: the network's state dict; trained parameters in float32, frozen ones and buffers in their own types.
        exp_avg: AdamW's first moment of every trained parameter, float32, in the parameter's shape.
        exp_avg_sq: its second moment.
        averaged: the averaged weights (`train.ema`) in float32; empty without.
        step: optimizer steps done.
        schedule: state dict of the learning rate's schedule.
    """

    module: Tensors
    exp_avg: Tensors
    exp_avg_sq: Tensors
    averaged: Tensors
    step: int
    schedule: dict[str, Any]

    def check(self, network: nn.Module) -> None:
        """Make sure that the state is of this network.

        Raises:
            UserError: parameters or buffers are missing or of another shape, or others are trained.
        """
        parameters = dict(network.named_parameters())
        shapes = {name: shape_of(value) for name, value in parameters.items()}
        shapes |= {name: tuple(value.shape) for name, value in network.named_buffers() if name in network.state_dict()}
        missing = shapes.keys() - self.module.keys()
        other = {name for name in shapes.keys() - missing if tuple(self.module[name].shape) != shapes[name]}
        frozen = {name for name, value in parameters.items() if value.requires_grad} ^ self.exp_avg.keys()
        for wrong, names in (("it lacks", missing), ("of another shape", other), ("trained in one only", frozen)):
            if names:
                shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                raise UserError(f"the checkpoint is of another network: {wrong}: {shown}. Use the settings it was made with")


@dataclass(frozen=True)
class StartMoments:
    """AdamW's moments that training begins with, where a run continues an earlier one under other settings: a recipe's
    `build` leaves them on the network as `start_moments`.

    Attributes:
        exp_avg: first moments by parameter name, in the parameters' shapes; a parameter that has none begins with zeros.
        exp_avg_sq: second moments.
        step: optimizer steps that they come from.
    """

    exp_avg: Tensors
    exp_avg_sq: Tensors
    step: int


def layout(folder: Path) -> tuple[int, int]:
    """(ZeRO stage, number of workers) that wrote the checkpoint in `folder`; zeros for a state in one piece."""
    if (folder / WHOLE).is_file():
        return 0, 0
    shards = _optimizer_shards(folder)
    return int(shards[0]["zero_stage"].value), len(shards)


def write_state(folder: Path, state: TrainingState) -> None:
    """Write a state in one piece; `read_state` and `Engine.load` take it as they take shards."""
    torch.save(vars(state), folder / WHOLE)


def read_state(folder: Path) -> TrainingState:
    """The state in a checkpoint; shards (what `Engine.save` wrote on every worker) are put together."""
    if (folder / WHOLE).is_file():
        return TrainingState(**torch.load(folder / WHOLE, map_location="cpu", weights_only=True))
    networks = [load_shard(path) for path in _paths(folder, "model_states")]
    shards = _optimizer_shards(folder)
    first = networks[0]
    sharded = "fp32_flat_groups" in shards[0]
    buffers: Tensors = {}
    if averaged_shard(folder, 0).is_file():
        for worker, shard in enumerate(shards):
            shard[EMA], buffers = split_shard(load_file(averaged_shard(folder, worker)))
    weights, exp_avg, exp_avg_sq, *more = (_gather_rows if sharded else _gather_slices)(shards, first["param_shapes"])
    module: Tensors = dict(first["module"])
    if sharded:  # the frozen parameters too
        for name, shape in first["frozen_param_shapes"].items():
            module[name] = _joined([network["frozen_param_fragments"][name] for network in networks], shape)
    module |= weights
    module |= {name: module[owner] for name, owner in first["shared_params"].items()}
    averaged = more[0] | buffers if more else load_file(folder / AVERAGED) if (folder / AVERAGED).is_file() else {}
    return TrainingState(module, exp_avg, exp_avg_sq, averaged, first["global_steps"], first["lr_scheduler"])


@torch.no_grad()
def restore(engine: DeepSpeedEngine, state: TrainingState) -> None:
    """Put `state` into a DeepSpeed engine that has not stepped yet. All workers call it together with the same state.

    Raises:
        UserError: the state is of another network, or of one with other parameters frozen.
    """
    import deepspeed

    module, zero, sharded = engine.module, engine.optimizer, engine.zero_optimization_stage() == 3
    state.check(module)
    before = getattr(module, "start_moments", None)
    _make_moments(engine, state.step + (before.step if before else 0))
    for name, parameter in module.named_parameters():
        value = state.module[name].to(engine.device)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded):
            if not sharded or engine.global_rank == 0:
                parameter.copy_(value)
        if parameter.requires_grad:
            set_whole(engine, parameter, value, None)
            for moment in MOMENTS:
                set_whole(engine, parameter, getattr(state, moment)[name].to(engine.device), moment)
    for name, buffer in module.named_buffers():
        if name in state.module:  # the others are not part of the network's state
            buffer.copy_(state.module[name])
    engine.lr_scheduler.load_state_dict(state.schedule)
    for group, lr in zip(zero.param_groups, engine.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    engine.global_steps = state.step


@torch.no_grad()
def begin_with_moments(engine: DeepSpeedEngine) -> None:
    """Give a DeepSpeed engine that has not stepped yet its network's `start_moments`, where it has any."""
    module = engine.module
    moments: StartMoments | None = getattr(module, "start_moments", None)
    if moments is None:
        return
    _make_moments(engine, moments.step)
    for name, parameter in module.named_parameters():
        for moment in MOMENTS:
            value = getattr(moments, moment).get(name)
            if parameter.requires_grad and value is not None:
                set_whole(engine, parameter, value.to(engine.device), moment)
    module.start_moments = replace(moments, exp_avg={}, exp_avg_sq={})


def _make_moments(engine: DeepSpeedEngine, step: int) -> None:
    """AdamW makes its state in its first step; where it is filled before, it must be there."""
    zero = engine.optimizer
    for flat in partitions(engine):
        done = {"step": torch.tensor(float(step))}
        zero.optimizer.state[flat] = done | {moment: torch.zeros_like(flat) for moment in MOMENTS}
    settle_kernel(zero.optimizer)
    link_moments(engine)


@torch.no_grad()
def set_weights(engine: DeepSpeedEngine, weights: Tensors) -> None:
    """Put whole weights of all trained parameters into the optimizer's fp32 partitions."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            set_whole(engine, parameter, weights[name].to(engine.device), None)


def averaged_shard(folder: Path, worker: int) -> Path:
    """A worker's averaged weights in a checkpoint: by number its flat buffers, and by `buffer.NAME` the network's."""
    return folder / f"ema-{worker:03d}.safetensors"


def split_shard(tensors: Tensors) -> tuple[list[torch.Tensor], Tensors]:
    """The flat buffers of `averaged_shard`, in order, and the network's buffers by name."""
    buffers = {name.removeprefix("buffer."): value for name, value in tensors.items() if name.startswith("buffer.")}
    return [tensors[str(place)] for place in range(len(tensors) - len(buffers))], buffers


def settle_kernel(optimizer: torch.optim.AdamW) -> None:
    """Let AdamW go on with the kernel it was made with, after its state came from a checkpoint.

    torch takes a group's options from the file, its kernel among them: a CPU's checkpoint would make a GPU slow. The fused
    kernel counts steps where the parameters are, the others on the CPU.
    """
    kernel = {name: optimizer.defaults[name] for name in ("fused", "foreach")}
    for group in optimizer.param_groups:
        group |= kernel
    for parameter, state in optimizer.state.items():
        state["step"] = state["step"].to(parameter.device if kernel["fused"] else "cpu")


def _gather_slices(shards: list[dict[str, Any]], shapes: list[dict[str, torch.Size]]) -> list[Tensors]:
    """ZeRO 1 and 2: a group's parameters stand one after the other in a buffer of which every worker holds one piece."""
    gathered: list[Tensors] = [{} for _ in range(KINDS + (EMA in shards[0]))]
    for group, named in enumerate(shapes):
        pieces = [_flat(shard, "single_partition_of_fp32_groups", "base_optimizer_state", group) for shard in shards]
        places = [shard["param_slice_mappings"][group] for shard in shards]
        for name, shape in named.items():
            held = [(flat, place[name]) for flat, place in zip(pieces, places, strict=True) if name in place]
            for kind, tensors in enumerate(gathered):
                tensors[name] = _joined([flat[kind].narrow(0, at.start, at.numel) for flat, at in held], shape)
    return gathered


def _gather_rows(shards: list[dict[str, Any]], shapes: list[dict[str, torch.Size]]) -> list[Tensors]:
    """ZeRO 3: every parameter is cut into equal pieces, one a worker, the last ones padded."""
    gathered: list[Tensors] = [{} for _ in range(KINDS + (EMA in shards[0]))]
    for group, named in enumerate(shapes):
        pieces = [_flat(shard, "fp32_flat_groups", "optimizer_state_dict", group) for shard in shards]
        start = 0
        for name, shape in named.items():
            length = -(-shape.numel() // len(shards))
            for kind, tensors in enumerate(gathered):
                tensors[name] = _joined([flat[kind].narrow(0, start, length) for flat in pieces], shape)
            start += length
    return gathered


def _flat(shard: dict[str, Any], weights: str, optimizer: str, group: int) -> tuple[torch.Tensor, ...]:
    """A group's flat buffers: weights, the two moments, and, where there are any, averaged weights."""
    moments = (shard[optimizer]["state"][group][moment] for moment in MOMENTS)
    return (shard[weights][group], *moments, *([shard[EMA][group]] if EMA in shard else []))


def _joined(pieces: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    return torch.cat([piece.flatten() for piece in pieces])[: shape.numel()].view(shape)


def _optimizer_shards(folder: Path) -> list[dict[str, Any]]:
    return [load_shard(path)["optimizer_state_dict"] for path in _paths(folder, "optim_states")]


def _paths(folder: Path, kind: str) -> list[Path]:
    """A checkpoint's files of a kind, in the order of the workers that wrote them."""
    paths = (folder / SHARDS).glob(f"*_{kind}.pt")
    return sorted(paths, key=lambda path: [int(part) for part in path.name.split("_") if part.isdigit()])


def load_shard(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A shard's tensors and plain values, read from the disk only as they are used; no code from it is run.

    Raises:
        pickle.UnpicklingError: it holds anything else.
    """
    with torch.serialization.safe_globals(shard_classes()):
        return torch.load(path, map_location=map_location, weights_only=True, mmap=True)
