"""Copies of a network and its optimizer on the host, which stay as they are while training goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def page_locked(size: int) -> int:
    """Bytes that PyTorch takes of the machine's memory for a page-locked block of so many: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def page_locked_copies(groups: Sequence[int], frozen: int, width: int, workers: int = 1) -> int:
    """Page-locked memory that the copies for a checkpoint take on the first worker of a run on cards.

    DeepSpeed lays the weights of a parameter group end to end, so each group is one block of weights, which are copied with
    the state and for the export, and three of the worker's part of fp32 weights and two moments.

    Args:
        groups: trained numbers of each.
        frozen: bytes of weights that are not trained.
        width: bytes of a trained weight on the card.
    """
    weights = page_locked(frozen) + sum(page_locked(width * count) for count in groups)
    return 2 * weights + sum(3 * page_locked(4 * -(-count // workers)) for count in groups)


class HostCopy:
    """One copy of whatever it is given, each storage once. It is made while the device goes on computing.

    From a card, tensors are copied into page-locked memory on a stream of their own, after what was computed so far. Until
    `hold_back` is called they must not be changed, and until `wait` returns they are not there; on a CPU both are done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        # With the storages that are copied: while they live, nothing else has their addresses.
        self._copied: dict[tuple[torch.device, int], tuple[torch.UntypedStorage, torch.Tensor]] = {}

    def of(self, value: Any) -> Any:
        """The same tensors, lists, tuples and dictionaries, on the host; anything else as it is."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach())
        if isinstance(value, dict):
            copied = copy.copy(value)  # an ordered one may have attributes
            copied.update((key, self.of(each)) for key, each in value.items())
            return copied
        return type(value)(self.of(each) for each in value) if type(value) in (list, tuple) else value

    def network(self, module: nn.Module) -> nn.Module:
        """A network to be written, not computed with: its own parameters and buffers, and all else the original's."""
        return self._network(module, {})

    def hold_back(self) -> None:
        """No more is copied: let what the device is told from now on wait for the copies. The host does not wait."""
        self._copied.clear()  # what is freed is used again only after them
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def wait(self) -> None:
        """Wait for the copies, in any thread."""
        if self._stream is not None:
            self._stream.synchronize()

    def _network(self, module: nn.Module, tied: dict[int, nn.Parameter]) -> nn.Module:
        twin = copy.copy(module)
        parameters: dict[str, nn.Parameter | None] = {}
        for name, parameter in module._parameters.items():
            if parameter is None:
                parameters[name] = None
                continue
            if id(parameter) not in tied:
                tied[id(parameter)] = nn.Parameter(self.of(parameter), parameter.requires_grad)
            parameters[name] = tied[id(parameter)]
        children = {name: None if child is None else self._network(child, tied) for name, child in module._modules.items()}
        twin.__dict__ |= {"_parameters": parameters, "_buffers": self.of(module._buffers), "_modules": children}
        return twin

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        place = tensor.device, storage.data_ptr()
        if place not in self._copied or not storage.nbytes():
            self._copied[place] = storage, self._bytes(storage, tensor.device)
        copied = self._copied[place][1].untyped_storage()
        return torch.empty(0, dtype=tensor.dtype).set_(copied, tensor.storage_offset(), tensor.shape, tensor.stride())

    def _bytes(self, storage: torch.UntypedStorage, device: torch.device) -> torch.Tensor:
        source = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        if self._stream is None or device.type != "cuda":
            return source.clone()
        with torch.cuda.stream(self._stream):
            return torch.empty_like(source, device="cpu", pin_memory=True).copy_(source, non_blocking=True)
