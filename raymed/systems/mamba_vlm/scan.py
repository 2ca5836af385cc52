"""The selective scan of Mamba (Gu and Dao 2023, arXiv:2312.00752), forward and backward, in plain torch.

States are kept at the borders of chunks only; the backward pass computes those in between again, so that memory grows with
length x channels and not with length x channels x states. A chunk's arrays stay in the processor's cache.
"""

# ruff: noqa: N803, N806 - A, B and C are what the literature calls them

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raymed.systems.mamba_vlm.kernels import fused_scan

CHUNK_ELEMENTS = 2**18  # of each array of a chunk, on a CPU: four of them fit into the last cache level
CHUNK_STEPS = 64  # of a chunk on a GPU, where launches cost more than memory
LOG2_E = 1 / math.log(2)  # exp(x) = 2^(LOG2_E x), and exp2 takes an x86 CPU a quarter of the time


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t and y_t = C_t h_t, from h = 0, in float32 at least.

    Where delta is 0 the state stands still: that is how padding is passed over.

    Args:
        x: [batch, length, channels].
        delta: step sizes after softplus, [batch, length, channels].
        A: negative decay rates [channels, states].
        B: [batch, length, states].
        C: [batch, length, states].

    Returns:
        y [batch, length, channels], and the last state [batch, states, channels].
    """
    with torch.autocast(x.device.type, enabled=False):
        x, delta, A, B, C = (tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in (x, delta, A, B, C))
        kernel = fused_scan() if x.is_cuda else None
        if kernel is None:
            return _Scan.apply(x, delta, A, B, C)
        x, delta, B, C = (tensor.transpose(1, 2).contiguous() for tensor in (x, delta, B, C))
        y, state = kernel(x, delta, A.contiguous(), B, C, return_last_state=True)
        return y.transpose(1, 2), state.transpose(1, 2)


def selective_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan` from a state [batch, states, channels]; x, delta [batch, channels], B, C [batch, states].

    Returns:
        y [batch, channels] and the next state.
    """
    state = torch.exp(delta[:, None] * A.t()) * state + (delta * x)[:, None] * B[:, :, None]
    return (C[:, None] @ state)[:, 0], state


class _Scan(torch.autograd.Function):
    """Arrays within have time first: [steps, batch, states, channels], so that one step is contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        batch, length, channels = x.shape
        chunk = _Chunk(x, A)
        starts = x.new_empty(-(-length // chunk.steps), batch, A.shape[1], channels)  # states before each chunk
        state = x.new_zeros(batch, A.shape[1], channels)
        y = torch.empty_like(x)
        for start, begin in zip(starts, range(0, length, chunk.steps), strict=True):
            start.copy_(state)
            part = slice(begin, begin + chunk.steps)
            _, states = chunk.scan(start, x[:, part], delta[:, part], B[:, part])
            y[:, part] = (C[:, part].transpose(0, 1)[:, :, None] @ states)[:, :, 0].transpose(0, 1)
            state = states[-1]
        ctx.save_for_backward(x, delta, A, B, C, starts)
        return y, state.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor, ...]:
        x, delta, A, B, C, starts = ctx.saved_tensors
        grad_y = torch.zeros_like(x) if grad_y is None else grad_y
        grad_x, grad_delta, grad_B, grad_C = (torch.empty_like(tensor) for tensor in (x, delta, B, C))
        chunk, rates = _Chunk(x, A), A.t().contiguous()
        grad_rates = torch.zeros_like(rates)
        carry = torch.zeros_like(starts[0]) if grad_last is None else grad_last  # of the state after the chunk
        gradients, product = chunk.empty(), chunk.empty()
        slices, decays = gradients.unbind(0), chunk.decays
        for index in reversed(range(len(starts))):
            part = slice(index * chunk.steps, (index + 1) * chunk.steps)
            decay, states = chunk.scan(starts[index], x[:, part], delta[:, part], B[:, part])
            steps = len(states)
            of_states, work = gradients[:steps], product[:steps]
            of_y, of_C, of_B = (tensor[:, part].transpose(0, 1) for tensor in (grad_y, C, B))
            step_size, value = delta[:, part].transpose(0, 1), x[:, part].transpose(0, 1)

            torch.mul(of_C[..., None], of_y[:, :, None], out=of_states)
            of_states[-1].add_(carry)
            for step in range(steps - 2, -1, -1):
                slices[step].addcmul_(decays[step + 1], slices[step + 1])
            carry = decay[0] * of_states[0]

            grad_C[:, part] = torch.mul(states, of_y[:, :, None], out=work).sum(-1).transpose(0, 1)
            grad_B[:, part] = torch.mul(of_states, (step_size * value)[:, :, None], out=work).sum(-1).transpose(0, 1)
            of_input = (of_B[:, :, None] @ of_states)[:, :, 0]
            grad_x[:, part] = (step_size * of_input).transpose(0, 1)
            of_states[1:].mul_(states[:-1])
            of_states[0].mul_(starts[index])
            of_states.mul_(decay)  # now the gradient of the exponent delta A
            of_delta = torch.mul(of_states, rates, out=work).sum(2) + value * of_input
            grad_delta[:, part] = of_delta.transpose(0, 1)
            grad_rates += torch.mul(of_states, step_size[:, :, None], out=work).sum((0, 1))
        return grad_x, grad_delta, grad_rates.t(), grad_B, grad_C


class _Chunk:
    """The buffers in which a chunk's states are computed, used again for every chunk."""

    def __init__(self, x: Tensor, A: Tensor) -> None:
        batch, length, channels = x.shape
        elements = batch * A.shape[1] * channels
        self.steps = min(length, CHUNK_STEPS if x.is_cuda else max(4, CHUNK_ELEMENTS // max(1, elements)))
        self._rates = A.t().contiguous() * LOG2_E
        self._like = x.new_empty(self.steps, batch, A.shape[1], channels, device="meta")
        self._device = x.device
        self._decay, self._states = self.empty(), self.empty()
        self.decays, self._each_state = self._decay.unbind(0), self._states.unbind(0)  # once: there are many steps

    def empty(self) -> Tensor:
        return torch.empty_like(self._like, device=self._device)

    def scan(self, start: Tensor, x: Tensor, delta: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """exp(delta A), and the states after each step, [steps, batch, states, channels]; the next call overwrites both."""
        delta, inputs = delta.transpose(0, 1), (delta * x).transpose(0, 1)
        decay, states = self._decay[: len(delta)], self._states[: len(delta)]
        torch.mul(delta[:, :, None], self._rates, out=decay).exp2_()
        torch.mul(inputs[:, :, None], B.transpose(0, 1)[..., None], out=states)
        state = start
        for factor, following in zip(self.decays[: len(delta)], self._each_state, strict=False):
            state = following.addcmul_(factor, state)
        return decay, states
