"""DeepSpeed's private parts.

A state in one piece, averaged weights and checkpoints from which no code is run have no public calls there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

SEEN = "0.19.8"
LITTLE = 2**20  # bytes of weights: so few are copied in less time than one more sum takes


def read_shards_with(engine: DeepSpeedEngine, load: Callable[..., Any]) -> None:
    """Have an engine read checkpoints with a function of ours. Its own unpickles with ``weights_only=False``
    (runtime/checkpoint_engine/torch_checkpoint_engine.py), which runs code that a file brings along."""
    engine.checkpoint_engine.load = load


def note_norm(zero: Any, norm: torch.Tensor) -> None:
    """Let `DeepSpeedEngine.get_global_grad_norm` give a norm that was computed without it, as it does its own."""
    zero._global_grad_norm = norm


@contextmanager
def handing_over_shards(engine: DeepSpeedEngine, take: Callable[[Any, str], None]) -> Iterator[Callable[[Any, str], None]]:
    """Within it an engine that saves a checkpoint writes no shard, but hands over its content and path.

    Yields:
        What writes them, as the engine would have.
    """
    files = engine.checkpoint_engine
    write = files.save
    files.save = lambda state_dict, path: take(state_dict, path)
    try:
        yield write
    finally:
        files.save = write


def shard_classes() -> list[Any]:
    """The classes in a checkpoint's shards that are no tensors or plain values; they hold numbers only."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def partitions(engine: DeepSpeedEngine) -> list[torch.Tensor]:
    """The fp32 weights that this worker trains: flat buffers, each of a piece of the parameters
    (runtime/zero/stage_1_and_2.py and stage3.py)."""
    zero = engine.optimizer
    flats = (
        zero.fp32_partitioned_groups_flat if engine.zero_optimization_stage() == 3 else zero.single_partition_of_fp32_groups
    )
    return list(flats)


def link_moments(engine: DeepSpeedEngine) -> None:
    """Let parameters know of moments that were made before the first step: ZeRO 1 and 2 link them in that step, and
    `set_full_hp_param` needs them (runtime/zero/stage_1_and_2.py)."""
    if engine.zero_optimization_stage() != 3:
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def set_whole(engine: DeepSpeedEngine, parameter: Any, value: torch.Tensor, moment: str | None) -> None:
    """Put this worker's part of a parameter's whole float32 copy, or of one of its moments, into the optimizer.

    Public is `safe_set_full_fp32_param`; under ZeRO 3 it forgets that the last workers' parts are padded
    (runtime/zero/stage3.py, `set_full_hp_param`).
    """
    if engine.zero_optimization_stage() < 3:
        parameter.set_full_hp_param(value, moment)
        return
    length = parameter.ds_tensor.numel()
    padded = torch.nn.functional.pad(value.flatten(), (0, length * engine.dp_world_size - value.numel()))
    engine.optimizer.set_local_hp_param(padded.narrow(0, engine.global_rank * length, length), parameter, moment)


def spread_weights(engine: DeepSpeedEngine) -> None:
    """Bring the network's weights up to date with the optimizer's, as DeepSpeed does at the end of a step and at no other
    time (runtime/zero/stage3.py, `_post_step`)."""
    zero = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        zero.update_lp_params()
        return
    zero._partition_all_parameters()
    for number in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(number)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def shape_of(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """A parameter's shape: ZeRO 3 leaves empty ones behind and keeps their shapes (runtime/zero/partition_parameters.py)."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_sharded(parameter: torch.nn.Parameter) -> bool:
    """Whether ZeRO 3 shares a parameter out among workers (runtime/zero/partition_parameters.py)."""
    return hasattr(parameter, "ds_id")


def leave_out_shared_memory_op() -> None:
    """Reduce with Gloo on a CPU: DeepSpeed's own operator would be compiled for a minute on every new machine, and there is
    no setting that leaves it out (ops/__init__.py, `__compatible_ops__`)."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def gather_weights_at_once() -> None:
    """Gather on CPUs the weights of all parameter groups at once. DeepSpeed has no setting for it, and waits for one group
    after the other (runtime/utils.py, `all_gather_into_tensor_dp_groups`)."""
    import torch.distributed as dist
    from deepspeed.runtime.zero import stage_1_and_2

    gather_one = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before PyTorch 2.13

    def gather(groups_flat: list[torch.Tensor], partitioned_param_groups: Any, dp_process_group: Any, **_: Any) -> None:
        group = dp_process_group[0]
        worker, workers = dist.get_rank(group), dist.get_world_size(group)
        if workers == 1:
            return
        parts = [partitions[worker] for partitions in partitioned_param_groups]
        if sum(part.nbytes for part in parts) > LITTLE:
            under_way = [gather_one(flat, part, group, async_op=True) for flat, part in zip(groups_flat, parts, strict=True)]
            for each in under_way:
                each.wait()
            return
        own = torch.cat(parts)
        every = own.new_empty(workers * len(own))
        gather_one(every, own, group)
        for flat, gathered in zip(groups_flat, every.view(workers, -1).split([len(part) for part in parts], 1), strict=True):
            flat.view(workers, -1).copy_(gathered)

    stage_1_and_2.all_gather_dp_groups = gather
