"""DeepSpeed, set up the same way for every recipe: ZeRO, precision, schedule, clipping, averaged weights.

The unit of work is a global batch. Each term of the loss is summed over its micro-batches and divided by its own units
(slices, tokens, latents) in the whole global batch, so that the gradient is that of the global means whatever the
accumulation and the number of workers.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from raymed.compat.deepspeed import handing_over_shards, read_shards_with
from raymed.data.micro_batches import Division, MicroBatch
from raymed.errors import RunError
from raymed.models.norm import batch_norms, computing, settle_batch_norms, step_statistics
from raymed.models.precision import arithmetic
from raymed.recipes.recipe import Batch, Predictions, Probe, Recipe
from raymed.training.cards import take_apart
from raymed.training.compiled import compile_blocks
from raymed.training.ema import AveragedWeights
from raymed.training.feed import Feed
from raymed.training.frozen import Readers, Source, frozen_part
from raymed.training.host_copy import HostCopy
from raymed.training.means import sums_of
from raymed.training.network import first_network
from raymed.training.schedule import learning_rate
from raymed.training.settings import TrainSettings
from raymed.training.start import StartWeights
from raymed.training.state import (
    SHARDS,
    TrainingState,
    averaged_shard,
    begin_with_moments,
    layout,
    load_shard,
    read_state,
    restore,
    settle_kernel,
)
from raymed.training.step_sums import StepFigures, StepSums, figures
from raymed.training.zero import check_offload, clip_in_update, deepspeed_config, sum_gradients_in_place, sum_norms_at_once


class Engine:
    """A recipe's network under DeepSpeed, in one worker. All workers call every method together."""

    def __init__(
        self,
        recipe: Recipe,
        settings: TrainSettings,
        total_steps: int,
        seed: int,
        device: torch.device,
        start: StartWeights | None = None,
    ) -> None:
        """Build the network and wrap it.

        Args:
            total_steps: optimizer steps of the whole run, for the schedule.
            start: weights to begin with, in place of the recipe's own.
        """
        import deepspeed  # only training workers need it; predicting and preparing work without

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.recipe, self.settings, self.seed, self.device = recipe, settings, seed, device
        self.workers, self.worker = dist.get_world_size(), dist.get_rank()
        timeout = timedelta(seconds=settings.collective_seconds)
        self._host = take_apart(device, timeout) if device.type == "cuda" and self.workers > 1 else None
        check_offload(settings, device)
        module = first_network(recipe, settings, seed, device, start)
        self._compiled = compile_blocks(module, settings, device)
        named = recipe.groups(module)
        groups = [
            {
                "name": group.name,
                "params": group.parameters,
                "lr": settings.lr * group.lr_scale,
                "weight_decay": settings.weight_decay if group.decay else 0.0,
            }
            for group in named
        ]
        trained = sum(parameter.numel() for group in named for parameter in group.parameters)
        self._engine, _, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=groups,
            config=deepspeed_config(settings, device, self.workers, trained),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: learning_rate(step, total_steps, settings)
            ),
        )
        begin_with_moments(self._engine)
        read_shards_with(self._engine, load_shard)
        self.module.train()  # and again after every evaluation, but not in every step: it walks the whole network
        self._norms = batch_norms(self.module)
        self._averaged = AveragedWeights(self._engine, settings.ema) if settings.ema else None
        self._last_norm = 0.0
        self._copies: list[HostCopy] = []
        self._under_way: StepSums | None = None
        self._unread: list[tuple[StepSums, torch.Tensor]] = []
        self._feed = Feed(device)
        if settings.zero_stage < 3 and settings.offload == "none":
            if self._engine.optimizer.optimizer.defaults["fused"]:
                clip_in_update(self._engine.optimizer)
            elif self.workers > 1:
                sum_norms_at_once(self._engine.optimizer)
            if settings.zero_stage == 1 and device.type == "cpu" and self._engine.optimizer.dtype == torch.float32:
                sum_gradients_in_place(self._engine.optimizer, self.workers)

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    @property
    def description(self) -> dict[str, str]:
        """Facts to tag a run with: where it computes, in which type, and what the network says of itself."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        weights = str(next(self.module.parameters()).dtype).removeprefix("torch.")
        amp = arithmetic(self.settings.precision, self.device) == "amp"
        how = {name: str(getattr(self.settings, name)) for name in ("micro_batch", "checkpoint_activations")}  # as found
        how["compile"] = self._compiled
        return {"device": device, "precision": "amp" if amp else weights} | how | getattr(self.module, "description", {})

    def readers(self, source: Source) -> Readers:
        """Where a worker with this network reads the rows of a source."""
        import deepspeed

        computed = arithmetic(self.settings.precision, self.device)
        part = frozen_part(self.recipe)
        parameters = [] if part is None else list(part.of(self.module).parameters())
        with deepspeed.zero.GatheredParameters(parameters, enabled=self.settings.zero_stage == 3):
            return Readers.of(source, self.recipe, self.module, computed)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self._engine.get_lr()[0])

    @property
    def gradient_norm(self) -> float:
        """Global norm of the gradient, before clipping, of the last step that was read."""
        return self._last_norm

    def prepare(self, batch: Batch) -> Batch:
        """A batch that was just encoded, so that `step` and `predict` need not wait for it; call it in any thread."""
        return self._feed.prepare(batch)

    def step(self, shares: Sequence[tuple[Batch, MicroBatch]], global_step: int, told: Sequence[bool] = ()) -> list[int]:
        """One optimizer step over this worker's micro-batches of a global batch; `read` gives its figures.

        What workers must know of each other travels while they compute: each sum of its own is a wait for the slowest.

        Args:
            shares: each encoded micro-batch, and its place in the division.
            told: what this worker tells the others.

        Returns:
            Of each of these, how many workers told it.
        """
        self._settle()
        lr = self.lr
        names = sorted(shares[0][0].units)
        counted = [batch.units for batch, micro in shares if micro.counts]
        own = [sum(units[name] for units in counted) for name in names]
        known = torch.tensor([*own, *map(float, told)], dtype=torch.float64)
        arriving, units = self._begin_sum(known), dict[str, float]()
        sums: dict[str, tuple[torch.Tensor | float, float]] = {}
        for slot, (batch, micro) in enumerate(shares):
            # Dropout draws depend on the place in the division, not on the worker that computes it.
            _seed(hash((self.seed, global_step, slot * self.workers + self.worker)) % 2**63, self.device)
            with computing(self._norms, micro.counts, micro.spans, micro.groups):
                loss = self.recipe.compute_loss(self._engine, self._feed.deliver(batch))
                if not units:
                    arriving()
                    units = dict(zip(names, known.tolist(), strict=False))
                # DeepSpeed averages gradients over workers; times their number this is the sum.
                self._engine.backward(loss.mean(units, self.workers if micro.counts else 0.0), scale_wrt_gas=False)
            for name, (total, count) in sums_of(loss, batch.units).items():
                before = sums.get(name, (0.0, 0.0))
                exact = total.detach().double() if isinstance(total, torch.Tensor) else total
                sums[name] = (before[0] + exact, before[1] + count) if micro.counts else before
        self._let_copies_finish()
        self._engine.step()
        norm, statistics = self._engine.get_global_grad_norm(), step_statistics(self._norms)
        self._under_way = StepSums.begin(global_step, lr, norm, sums, statistics, self.device, self._begin_sum)
        return [round(count) for count in known[len(names) :].tolist()]

    def _settle(self) -> None:
        """Take in what the last step summed over the workers, which takes until now: running statistics and averages."""
        if self._under_way is None:
            return
        step, self._under_way = self._under_way, None
        totals, statistics = step.arrived()
        self._unread.append((step, totals))
        settle_batch_norms(self._norms, statistics)
        if self._averaged:
            self._averaged.update(step.step)

    def read(self) -> list[StepFigures]:
        """The figures of the steps since the last call, in order; here a device is waited for.

        Raises:
            RunError: a loss, or its gradient, is not a finite number.
        """
        self._settle()
        steps, self._unread = self._unread, []
        read = figures(steps)
        self._last_norm = read[-1].gradient_norm if read else self._last_norm
        return read

    def predict(self, batch: Batch, judge: Recipe | Probe | None = None) -> Predictions:
        """The outputs of the recipe, or of its probe, for a micro-batch; call inside `evaluating`."""
        with torch.no_grad():
            predicted = (judge or self.recipe).predict(self.module, self._feed.deliver(batch))
        return {
            name: values.cpu().numpy() if isinstance(values, torch.Tensor) else values for name, values in predicted.items()
        }

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network in evaluation mode with the averaged weights, where there are any."""
        self._settle()
        self.module.eval()
        with self._swapped():
            yield
        self.module.train()

    def export(self, folder: Path) -> Callable[[], None]:
        """Copy the network, with the weights that `evaluating` uses, to the host of worker 0; ZeRO 3 gathers them first.

        Returns:
            What writes it as `Recipe.export` does, in any thread, while training goes on; on other workers it does nothing.
        """
        import deepspeed

        self._settle()
        sharded = self.settings.zero_stage == 3
        gathered = deepspeed.zero.GatheredParameters(list(self.module.parameters()), enabled=sharded)
        with self._swapped(), gathered:
            if self.worker:
                return lambda: None
            copied = self._host_copy()
            network = copied.network(self.module)
            if sharded or self._averaged:
                copied.hold_back()  # what was gathered or swapped is gone again

        def write() -> None:
            copied.wait()
            self.recipe.export(network, folder)

        return write

    def save(self, folder: Path) -> Callable[[], None]:
        """Copy this worker's part of the training state to the host.

        Returns:
            What writes it into the folder, in any thread, while training goes on.
        """
        self._settle()
        copied = self._host_copy()
        shards: list[tuple[Any, str]] = []
        with handing_over_shards(self._engine, lambda state, path: shards.append((copied.of(state), path))) as write_shard:
            self._engine.save_checkpoint(str(folder), tag=SHARDS, save_latest=False)
        averaged = copied.of(self._averaged.tensors()) if self._averaged else {}

        def write() -> None:
            copied.wait()
            for state, path in shards:
                write_shard(state, path)
            if averaged:
                save_file(averaged, averaged_shard(folder, self.worker))

        return write

    def _host_copy(self) -> HostCopy:
        copied = HostCopy(self.device)
        self._copies.append(copied)
        return copied

    def _let_copies_finish(self) -> None:
        """What changes weights or moments comes after the copies that are being made of them."""
        for copied in self._copies:
            copied.hold_back()
        self._copies = []

    def load(self, folder: Path) -> None:
        """Go on from a training state that `save` wrote; bit-equal where ZeRO stage and number of workers are the same.

        Raises:
            UserError: it is the state of another network.
            RunError: DeepSpeed found nothing it can load.
        """
        self._settle()
        if layout(folder) != (self.settings.zero_stage, self.workers):
            self.restore(read_state(folder))
            return
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=SHARDS)
        if loaded is None:
            raise RunError(f"DeepSpeed cannot load the checkpoint in {folder}")
        settle_kernel(self._engine.optimizer.optimizer)
        if self._averaged:
            self._averaged.load(folder)

    def restore(self, state: TrainingState) -> None:
        """Go on from a training state in one piece, whatever ZeRO stage and number of workers it comes from.

        Raises:
            UserError: it is the state of another network, or holds no averaged weights though `train.ema` is on.
        """
        self._settle()
        restore(self._engine, state)
        if self._averaged:
            self._averaged.set(state.averaged)

    def _swapped(self) -> contextlib.AbstractContextManager[None]:
        if self._averaged:
            self._let_copies_finish()
        return self._averaged.swapped() if self._averaged else contextlib.nullcontext()

    def greatest(self, value: int) -> int:
        """The greatest of the workers' values."""
        if self.workers == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self._host)
        return int(tensor)

    def _begin_sum(self, tensor: torch.Tensor) -> Callable[[], object]:
        """Begin to sum over workers, in place; whoever needs it calls what is returned. What is on the host waits for no
        device."""
        if self.workers == 1:
            return lambda: None
        return dist.all_reduce(tensor, group=self._host if tensor.device.type == "cpu" else None, async_op=True).wait


def division(recipe: Recipe, module: nn.Module, settings: TrainSettings, workers: int) -> Division:
    """How global batches are divided among so many workers.

    Raises:
        UserError: items that the network normalises or compares together do not fit.
    """
    meet = recipe.contrastive or bool(batch_norms(module))
    divided = Division(settings.packs_at_once, workers, settings.norm_group if meet else 0, recipe.contrastive)
    # The last global batch of an epoch may hold just one group's packs, where a whole one is cut into smaller groups.
    divided.check(min(settings.global_batch, settings.norm_group))
    return divided


def _seed(seed: int, device: torch.device) -> None:
    """Seed what a step draws from; `torch.manual_seed` takes milliseconds where a device it knows of is not in use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
