"""The Mamba block: the mixer that bridge and language model share, and the states with which it goes on token by token.

Names of parameters are those of the published checkpoints.
"""

# ruff: noqa: N806 - A, B and C are what the literature calls them

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymed.systems.mamba_vlm.kernels import fused_convolution
from raymed.systems.mamba_vlm.scan import selective_scan, selective_step

STEP_RANGE = (1e-3, 1e-1)  # of the step sizes at the start
STEP_FLOOR = 1e-4


@dataclass(frozen=True)
class MixerState:
    """What a mixer remembers of a sequence.

    Attributes:
        inputs: the convolution's last inputs, [batch, kernel - 1, inner].
        scan: state of the scan, [batch, states, inner], float32.
    """

    inputs: Tensor
    scan: Tensor


class MambaMixer(nn.Module):
    """Input-dependent state space model over a sequence: projection, causal convolution, selective scan, gate, projection.

    Args:
        width: of the tokens.
        states: per channel.
        kernel: length of the convolution.
        expand: channels within, in widths.
        rank: of the step sizes; by default a sixteenth of the width.
        bias: of the projections in and out.
        convolution_bias: of the convolution.
    """

    def __init__(
        self,
        width: int,
        states: int = 16,
        kernel: int = 4,
        expand: int = 2,
        rank: int | None = None,
        bias: bool = False,
        convolution_bias: bool = True,
    ) -> None:
        super().__init__()
        inner = expand * width
        self.states, self.kernel, self.rank = states, kernel, rank or math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1, bias=convolution_bias)
        self.x_proj = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=bias)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = map(math.log, STEP_RANGE)
        steps = torch.empty(inner).uniform_(low, high).exp().clamp(min=STEP_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus gives `steps` back

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [batch, length, width]; the same shape."""
        inputs, gate = self.in_proj(tokens).chunk(2, dim=-1)
        x = self._convolve(inputs)
        y, _ = selective_scan(x, *self._scan_inputs(x))
        return self._output(y, x, gate)

    def prefill(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, MixerState]:
        """The same, and each row's state at its own length.

        Args:
            mask: bool [batch, length], False on padding, which follows.
        """
        inputs, gate = self.in_proj(tokens).chunk(2, dim=-1)
        x = self._convolve(inputs)
        delta, A, B, C = self._scan_inputs(x)
        y, state = selective_scan(x, delta * mask[..., None], A, B, C)
        before = F.pad(inputs, (0, 0, self.kernel - 1, 0))  # as if zeros came before the first token
        window = mask.sum(1)[:, None] + torch.arange(self.kernel - 1, device=mask.device)
        last = before.gather(1, window[..., None].expand(-1, -1, before.shape[2]))
        return self._output(y, x, gate), MixerState(last, state)

    def step(self, tokens: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """One token more of each row, [batch, width]."""
        inputs, gate = self.in_proj(tokens).chunk(2, dim=-1)
        window = torch.cat([state.inputs, inputs[:, None]], dim=1)
        x = (window * self.conv1d.weight[:, 0].t()).sum(1)
        x = F.silu(x if self.conv1d.bias is None else x + self.conv1d.bias)
        delta, A, B, C = self._scan_inputs(x)
        y, scan = selective_step(state.scan, x.float(), delta, A, B.float(), C.float())
        return self._output(y, x, gate), MixerState(window[:, 1:], scan)

    def _convolve(self, inputs: Tensor) -> Tensor:
        kernel = fused_convolution() if inputs.is_cuda else None
        if kernel is not None:
            return kernel(inputs.transpose(1, 2), self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu").transpose(
                1, 2
            )
        return F.silu(self.conv1d(inputs.transpose(1, 2))[..., : inputs.shape[1]].transpose(1, 2))

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step sizes, rates A, B and C of the scan over x."""
        step, B, C = self.x_proj(x).split([self.rank, self.states, self.states], dim=-1)
        return F.softplus(self.dt_proj(step).float()), -torch.exp(self.A_log.float()), B, C

    def _output(self, y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        y = (y + self.D.float() * x.float()) * F.silu(gate.float())
        return self.out_proj(y.to(gate.dtype))
