"""Batches on their way to a card: page-locked as they are encoded, and copied on a stream of their own while it computes; on
that stream, too, their pictures are varied."""

from __future__ import annotations

from dataclasses import replace

import torch

from raymed.recipes.recipe import Batch


class Feed:
    """Brings one worker's batches to its device. On a CPU they are there once their pictures are varied.

    A copy from ordinary memory waits for all that the device was told to compute before; one from page-locked memory does
    not, and on a stream of its own it does not wait its turn behind it either.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prepare(self, batch: Batch) -> Batch:
        """The batch in page-locked memory, or on the CPU; in the thread that encodes, because it takes time."""
        if self._stream is None:
            return batch.to(self._device)
        locked = {
            name: tensor if name in batch.on_host else tensor.pin_memory(self._device)
            for name, tensor in batch.tensors.items()
        }
        return replace(batch, tensors=locked)

    def deliver(self, batch: Batch) -> Batch:
        """The batch on the device, there before whatever the calling thread lets it compute next."""
        if self._stream is None:
            return batch.to(self._device)
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device)
        computing.wait_stream(self._stream)
        for tensor in moved.tensors.values():
            if tensor.is_cuda:
                tensor.record_stream(computing)  # its memory is free again once that stream is through with it
        return moved
