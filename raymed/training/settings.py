"""How a model is trained, as a person says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from raymed.errors import UserError
from raymed.models.settings import Precision

# of TrainSettings: how, not what
HOW = (
    "micro_batch",
    "checkpoint_activations",
    "compile",
    "zero_stage",
    "offload",
    "offload_path",
    "log_steps",
    "checkpoint_steps",
    "stall_minutes",
    "storage_minutes",
)


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained.

    Attributes:
        epochs: Most epochs.
        steps: Optimizer steps in all, in place of `epochs`: the schedule follows them, and the last epoch ends where they do
            (0 = by `epochs`).
        global_batch: Packs (slices) per optimizer step, over all workers.
        micro_batch: Most packs per forward pass of a worker; the rest of the global batch is accumulated. Lower it when
            memory is short, or say auto: the largest that fits is found by trying before the run begins.
        checkpoint_activations: Whether activations are computed again in the backward pass, which takes less memory and a
            third more time: as the model settings say (off), always (on), or where not even the smallest micro-batch fits
            otherwise, or the one that was asked for (auto).
        norm_group: Packs whose statistics a batch norm takes together, and that a contrastive loss compares; of a smaller
            global batch all. It decides the result of such networks, whatever micro-batch and workers; of others nothing.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay; never on norms and biases.
        beta2: Decay of AdamW's mean of squared gradients (that of gradients is 0.9).
        eps: Added to the root of that mean.
        warmup: Share of all steps over which the learning rate rises linearly.
        final_lr: Learning rate at the end of the cosine, as a share of the peak.
        clip: Largest gradient norm (0 = no clipping).
        ema: Decay of the averaged weights that are evaluated and kept (0 = off).
        compile: Whether torch.compile makes fewer, larger kernels of each block of the network: on a GPU, under ZeRO 1 and 2
            (auto), wherever it can (on), or not (off). The first steps take longer; not yet seen on a GPU.
        zero_stage: DeepSpeed ZeRO stage, 1, 2 or 3.
        offload: Where the optimizer's weights and moments are kept, and under ZeRO 3 the network's weights between their
            uses: on the GPU (none), in the machine's memory (cpu), or, under ZeRO 3, on its disk (nvme). It makes room on
            the GPU, and steps slower.
        offload_path: Folder on an NVMe disk of every worker's machine, for `offload nvme`.
        precision: Type of weights and arithmetic: bf16 on GPUs that have it and fp32 elsewhere (auto), or one of them;
            `amp` keeps fp32 weights under bf16 autocast, which halves the time of a step on CPUs with bf16 instructions, and
            validates in fp32.
            Devices without them compute in fp32.
        monitor: What the best epoch is chosen by: val_loss, another metric that the system declares for it, or global_step,
            by which the last one is kept. A search chooses by search.objective.
        patience: Stop after this many validations (epochs) without an improvement (0 = never).
        patience_monitor: Of what; empty for what the best epoch is chosen by.
        min_delta: A smaller change of it is no improvement; in the metric's unit.
        validate_steps: Validate every so many steps and at the end, in place of after each epoch; the learning curve,
            patience and successive halving count by these (0 = by epochs).
        log_steps: Tell of loss, learning rate and speed every so many steps, where that is not more than once in five
            seconds; MLflow gets every step.
        checkpoint_steps: Checkpoint every so many steps, besides one after each validation (0 = only those).
        stall_minutes: A step, or a checkpoint, that takes longer is taken for a hang: the workers are started again from the
            last checkpoint, and a run that hangs again fails (0 = never).
        storage_minutes: How long a storage that goes away is waited for.
    """

    epochs: int = 10
    steps: int = 0
    global_batch: int = 16
    micro_batch: int | Literal["auto"] = 16
    checkpoint_activations: Literal["off", "on", "auto"] = "off"
    compile: Literal["off", "on", "auto"] = "off"
    norm_group: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.01
    beta2: float = 0.999
    eps: float = 1e-8
    warmup: float = 0.1
    final_lr: float = 0.01
    clip: float = 1.0
    ema: float = 0.0
    zero_stage: Literal[1, 2, 3] = 1
    offload: Literal["none", "cpu", "nvme"] = "none"
    offload_path: str = ""
    precision: Precision = "auto"
    monitor: str = "val_loss"
    patience: int = 0
    patience_monitor: str = ""
    min_delta: float = 0.0
    validate_steps: int = 0
    log_steps: int = 10
    checkpoint_steps: int = 0
    stall_minutes: float = 30.0
    storage_minutes: float = 20.0

    def __post_init__(self) -> None:
        if min(self.epochs, self.global_batch, self.packs_at_once, self.norm_group, self.log_steps) < 1:
            raise UserError("train.epochs, global_batch, micro_batch, norm_group and log_steps must be at least 1")
        if min(self.patience, self.min_delta, self.stall_minutes, self.storage_minutes) < 0:
            raise UserError("train.patience, min_delta, stall_minutes and storage_minutes must be at least 0")
        if self.lr <= 0 or min(self.weight_decay, self.clip) < 0:
            raise UserError("train.lr must be above 0; train.weight_decay and train.clip must not be below")
        if not (0 <= self.beta2 < 1 and self.eps > 0):
            raise UserError(f"train.beta2 {self.beta2:g} is from 0 to below 1, train.eps {self.eps:g} above 0")
        if min(self.steps, self.validate_steps, self.checkpoint_steps) < 0:
            raise UserError("train.steps, validate_steps and checkpoint_steps are counts of steps: 0, or how many")
        if not (0 <= self.warmup <= 1 and 0 <= self.final_lr <= 1 and 0 <= self.ema < 1):
            raise UserError(
                f"train.warmup {self.warmup:g} and train.final_lr {self.final_lr:g} are shares (of all steps, of train.lr): "
                f"from 0 to 1; train.ema {self.ema:g} is below 1"
            )
        if self.offload == "nvme":
            if self.zero_stage < 3:
                raise UserError("train.offload nvme is for train.zero_stage 3: DeepSpeed keeps the others' states in memory")
            if not self.offload_path:
                raise UserError("train.offload nvme needs train.offload_path, a folder on an NVMe disk of every machine")
            if self.ema:
                raise UserError("train.ema averages weights that train.offload nvme keeps on a disk: use cpu, or ema 0")
        if self.offload_path and self.offload != "nvme":
            raise UserError(f"train.offload_path {self.offload_path} is for train.offload nvme: leave it out")

    @property
    def packs_at_once(self) -> int:
        """Most packs of a micro-batch; before `auto` is settled, those of a global batch."""
        return self.global_batch if self.micro_batch == "auto" else self.micro_batch

    @property
    def asks_memory(self) -> bool:
        """Whether what fits into memory decides something of how the run computes."""
        return "auto" in (self.micro_batch, self.checkpoint_activations)

    @property
    def counted(self) -> Literal["epoch", "global_step"]:
        """What validations are counted by, as a metric: the axis of a learning curve, the rungs of successive halving."""
        return "global_step" if self.validate_steps else "epoch"

    @property
    def noun(self) -> str:
        """What a person calls it."""
        return self.counted.removeprefix("global_")

    @property
    def collective_seconds(self) -> int:
        """How long workers wait for each other: for torch's usual half hour, and while one of them waits for the storage."""
        return 1800 + round(60 * self.storage_minutes)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide what comes out; those that only say how it is done may change as a run goes on."""
        return {name: value for name, value in vars(self).items() if name not in HOW}

    def how(self) -> dict[str, Any]:
        """The others."""
        return {name: getattr(self, name) for name in HOW}


@dataclass(frozen=True)
class StartSettings:
    """What a run starts from.

    Attributes:
        weights: An earlier run's id, models:/NAME@ALIAS, or the folder of an exported network or a checkpoint, whose weights
            are loaded into the network (default: the starting weights that the model settings name). Also --start.from.
        new: Parts of the network that keep the starting weights of the model settings, separated by commas: `head`, or
            `model.head.weight`. All others must be in the weights, and the weights must hold nothing else.
    """

    weights: str | None = None
    new: str = ""

    def __post_init__(self) -> None:
        if self.new and self.weights is None:
            raise UserError("start.new names parts of a network that starts from others' weights: give --start.from too")

    @property
    def parts(self) -> tuple[str, ...]:
        """What `new` names."""
        return tuple(part.strip() for part in self.new.split(",") if part.strip())
