"""DeepSpeed's configuration: ZeRO's stage, precision, what is kept out of the GPUs' memory; and its gradient's norm.

Where weights are on a card, ZeRO 1 and 2 ask it nothing in a step. ZeRO 3 waits for it in each backward pass
(`independent_gradient_partition_epilogue`) and, as an offloaded optimizer does, for the norm in the update.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from raymed.compat.deepspeed import note_norm
from raymed.errors import UserError
from raymed.models.precision import arithmetic
from raymed.storage import holder
from raymed.training.settings import TrainSettings

if TYPE_CHECKING:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

OFFLOADED, HOLDER = "raymed-offload-", "holder.json"  # a worker's folder on a disk, and which process it is
LARGEST_BUCKET = 500_000_000  # numbers that DeepSpeed sums over workers at once; it makes room for all of them


def deepspeed_config(settings: TrainSettings, device: torch.device, workers: int, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration; accumulation is ours, because the last global batch of an epoch may be smaller.

    Args:
        trained: numbers in all trained parameters.
    """
    computed = arithmetic(settings.precision, device)
    on_gpu, several = device.type == "cuda", workers > 1
    return {
        "train_micro_batch_size_per_gpu": settings.packs_at_once,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.clip,
        # A gradient that is not finite leaves weights and moments alone, and `Engine.read` says so.
        "bf16": {"enabled": computed == "bf16", "check_grad_overflow": True},
        # No module's gradients are sent in bf16: their sum over workers stays exact to fp32. Over the micro-batches of one
        # worker bf16 weights add theirs up in bf16, so few large micro-batches are the more exact.
        "torch_autocast": {
            "enabled": computed == "amp",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        **({"communication_data_type": "fp32"} if several else {}),  # alone, gradients would be cast there and back
        "zero_optimization": {
            "stage": settings.zero_stage,
            # ZeRO 1 sums gradients in the update itself, when there is nothing left to overlap with.
            "overlap_comm": on_gpu and several and settings.zero_stage > 1,
            "reduce_bucket_size": min(LARGEST_BUCKET, trained),
            **_offload(settings),
        },
        "zero_allow_untested_optimizer": True,
        # torch's AdamW needs nothing compiled, as DeepSpeed's own for offloaded weights would; its fused kernel, which CPUs
        # have too, updates a group at once.
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": settings.lr,
                "betas": (0.9, settings.beta2),
                "eps": settings.eps,
                "weight_decay": settings.weight_decay,
                "torch_adam": True,
                "fused": on_gpu,
            },
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the card before each micro-batch, and after it
    }


def check_offload(settings: TrainSettings, device: torch.device) -> None:
    """Refuse an offload that this worker's machine cannot do, or that saves nothing on it.

    Raises:
        UserError: no GPU, no such folder, or nothing that reads and writes it.
    """
    if settings.offload == "none":
        return
    if device.type == "cpu":
        raise UserError(f"train.offload {settings.offload} takes load off a GPU's memory, and there is none: leave it out")
    if settings.offload == "nvme":
        if not Path(settings.offload_path).is_dir():
            raise UserError(
                f"train.offload_path {settings.offload_path} is no folder on a worker's machine: mount the disk there"
            )
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise UserError(
                "train.offload nvme needs DeepSpeed's async_io, which is compiled when it is first used, and there is no "
                "libaio to compile it with: install libaio-dev and a C++ compiler on the workers, or use train.offload cpu"
            )


@contextlib.contextmanager
def own_disk(settings: TrainSettings) -> Iterator[TrainSettings]:
    """Settings by which DeepSpeed keeps a worker's part on the disk in a folder of its own, which goes when the run does.

    DeepSpeed tells its files apart by the worker's rank alone, and begins by removing them: those of another run on the
    machine. What a process left there that was killed goes first.
    """
    disk = Path(settings.offload_path)
    if settings.offload != "nvme" or not disk.is_dir():  # see `check_offload`
        yield settings
        return
    for left in disk.glob(f"{OFFLOADED}*"):
        with contextlib.suppress(OSError, ValueError):  # another worker's that has just begun, or is being removed
            if holder.has_ended(json.loads((left / HOLDER).read_text())):
                shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=OFFLOADED, dir=disk, ignore_cleanup_errors=True) as folder:
        Path(folder, HOLDER).write_text(json.dumps(holder.myself()))
        yield dataclasses.replace(settings, offload_path=folder)


def sum_norms_at_once(zero: DeepSpeedZeroOptimizer) -> None:
    """Let ZeRO 1 and 2 sum the norms of all parameter groups over the workers at once: each sum is a wait for the slowest.

    DeepSpeed makes a sum for each group; the norm that comes of it is the same, bit for bit.
    """
    from deepspeed.runtime.utils import combine_grad_norm_groups, mask_nan_or_inf_with_val_inplace
    from deepspeed.runtime.zero.utils import get_norm_dtype

    def global_norm(norm_type: float = 2) -> torch.Tensor:
        squares = [torch.zeros((), device=zero.device) for _ in zero.bit16_groups]
        for place in range(len(squares)):
            gradients = (each for each in zero.averaged_gradients[place] if not getattr(each, "_zero_padding", False))
            norms = [
                torch.linalg.vector_norm(gradient.detach().to(get_norm_dtype()))
                for gradient, _ in zip(gradients, zero.params_in_partition[place], strict=False)
            ]
            if norms:
                squares[place] = torch.stack(norms).pow(2).sum().float()
        total = torch.stack(squares)
        dist.all_reduce(total, group=zero.dp_process_group)
        groups = [square.sqrt() for square in total]
        for norm in groups:
            mask_nan_or_inf_with_val_inplace(norm, device=zero.device)
        return combine_grad_norm_groups(groups, norm_type=norm_type)

    zero.scaled_global_norm = global_norm


def sum_gradients_in_place(zero: DeepSpeedZeroOptimizer, workers: int) -> None:
    """Let ZeRO 1 sum float32 gradients over the workers where they lie, end to end in its bucket.

    DeepSpeed looks for each parameter's owner first, and copies the bucket there and back, alone, too. What each worker
    takes of the sum is the same, bit for bit.
    """

    def average(bucket: torch.Tensor, sent_as: torch.dtype) -> None:
        if workers > 1 and len(bucket):
            dist.all_reduce(bucket.div_(workers), group=zero.dp_process_group)

    zero.average_tensor = average


def clip_in_update(zero: DeepSpeedZeroOptimizer) -> None:
    """Let torch's fused AdamW clip the gradient of ZeRO 1 and 2, and leave out the update where it is not finite.

    DeepSpeed reads the norm for that, a flag before it, and both again for each parameter group; behind each reading the
    device runs empty. The kernel takes both as tensors: it divides by `grad_scale`, and where `found_inf` is 1 it leaves
    weights, moments and its count of steps alone. Norms are summed in float64, as DeepSpeed sums them.
    """
    adamw, largest = zero.optimizer, zero.clip_grad

    def judge(partition_gradients: bool = True) -> None:
        gradients = [
            gradient.detach()
            for group in zero.averaged_gradients.values()
            for gradient in group or ()
            if not getattr(gradient, "_zero_padding", False)
        ]
        square = torch.zeros((), dtype=torch.float64, device=zero.device)
        if gradients:
            square += torch.stack(torch._foreach_norm(gradients, 2, torch.float64)).square().sum()
        dist.all_reduce(square, group=zero.dp_process_group)
        norm = square.sqrt()
        adamw.found_inf = 1.0 - norm.isfinite().float()
        if largest:
            adamw.grad_scale = ((norm + 1e-6) / largest).clamp(min=1.0).float()
        note_norm(zero, norm)

    take_step = zero.step

    def step(*arguments: Any) -> None:
        zero.compute_grad_norm = False  # in a step alone: without it DeepSpeed loads no state that was clipped
        try:
            take_step(*arguments)
        finally:
            zero.compute_grad_norm = True

    zero.check_grad_overflow = True
    zero.check_overflow = judge  # the first thing that an update does with its gradients, whatever their type
    zero.unscale_and_clip_grads = lambda gradients, norm: None
    zero.step = step


def _offload(settings: TrainSettings) -> dict[str, Any]:
    """Where ZeRO keeps the optimizer's weights and moments, and, under stage 3, the network's weights between their uses."""
    if settings.offload == "none":
        return {}
    where = {"device": settings.offload} | ({"nvme_path": settings.offload_path} if settings.offload == "nvme" else {})
    return {"offload_optimizer": where} | ({"offload_param": where} if settings.zero_stage == 3 else {})
