"""Averaged weights (EMA): each worker averages the fp32 weights that ZeRO gave it to train, and no worker holds them all.

They follow the optimizer's fp32 weights, also where the network computes in bf16. Running statistics of batch norms, which
belong to the weights, are averaged too; they are small, and the same on every worker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from raymed.compat.deepspeed import partitions, spread_weights
from raymed.errors import UserError
from raymed.training.state import AVERAGED, Tensors, averaged_shard, set_weights, split_shard

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class AveragedWeights:
    """The running average of a network's weights, one partition on each worker. All workers call every method together."""

    def __init__(self, engine: DeepSpeedEngine, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            decay: share of the average that a step keeps, once there were steps enough.
        """
        self._engine, self._decay = engine, decay
        self._flats = [flat.detach().clone() for flat in partitions(engine)]
        self._buffers = {name: value.float().clone() for name, value in self._running()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the weights after step `step`, from 0; the average follows faster in the first steps."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._flats, [flat.detach() for flat in partitions(self._engine)], share)
        for name, value in self._running():
            self._buffers[name].lerp_(value.float(), share)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The average in the place of the network's weights, and these in its place, for a while."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def tensors(self) -> Tensors:
        """This worker's part, as `averaged_shard` holds it."""
        flats = {str(place): flat for place, flat in enumerate(self._flats)}
        return flats | {f"buffer.{name}": value for name, value in self._buffers.items()}

    def load(self, folder: Path) -> None:
        """Go on with what `tensors` gave under the same ZeRO stage and number of workers.

        Raises:
            UserError: the checkpoint holds no averaged weights.
        """
        shard = averaged_shard(folder, self._engine.global_rank)
        if not shard.is_file():  # of before they were shared out, or there are none
            self.set(load_file(folder / AVERAGED) if (folder / AVERAGED).is_file() else {})
            return
        flats, buffers = split_shard(load_file(shard, device=str(self._engine.device)))
        for flat, value in zip(self._flats, flats, strict=True):
            flat.copy_(value)
        self._buffers = buffers

    @torch.no_grad()
    def set(self, averaged: Tensors) -> None:
        """Go on with whole averaged weights by name, whatever stage and number of workers they come from.

        Raises:
            UserError: there are none.
        """
        if not averaged:
            raise UserError("the checkpoint holds no averaged weights: train on with train.ema 0, or start again")
        own = [flat.detach().clone() for flat in partitions(self._engine)]
        set_weights(self._engine, averaged)  # by way of the optimizer's weights, which know their places
        for flat, current, kept in zip(self._flats, partitions(self._engine), own, strict=True):
            flat.copy_(current.detach())
            current.data.copy_(kept)
        self._buffers = {name: averaged[name].to(value.device) for name, value in self._buffers.items()}

    def _running(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, value) for name, value in self._engine.module.named_buffers() if value.is_floating_point())

    @torch.no_grad()
    def _exchange(self) -> None:
        for flat, current in zip(self._flats, partitions(self._engine), strict=True):
            kept = current.detach().clone()  # one partition at a time
            current.data.copy_(flat)
            flat.copy_(kept)
        for name, value in self._running():
            kept = value.float().clone()
            value.copy_(self._buffers[name])
            self._buffers[name].copy_(kept)
        spread_weights(self._engine)
