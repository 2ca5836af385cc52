"""Cross-Mamba interaction (CMI): the question sets a state space model, and the visual tokens flow through it
(after the connector of CMI-MTL, arXiv:2511.01357)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymed.systems.mamba_vlm.scan import selective_scan

Form = Literal["guide", "gated"]


class CrossInteraction(nn.Module):
    """h_t = (1 - delta) h_{t-1} + delta b x_t, y_t = g h_t; delta, b and g come from the question's mean embedding.

    Args:
        width: of the tokens and of the language model.
        states: channels of the state.
        compress_to: the most visual tokens; of more, so many at equal distances are kept.
        form: `guide` replaces the tokens by the result; `gated` lets each token set its own step as well, and adds the
            result times a factor that is 0 at the start, so that an older checkpoint's tokens stay as they are.
    """

    def __init__(self, width: int, states: int = 64, compress_to: int = 512, form: Form = "guide") -> None:
        super().__init__()
        self.compress_to, self.form = compress_to, form
        self.x_proj = nn.Linear(width, states)
        self.proj_delta = nn.Sequential(nn.Linear(width, states))  # its place in older checkpoints
        self.proj_B = nn.Linear(width, states)
        self.proj_C = nn.Linear(width, states)
        self.out_proj = nn.Linear(states, width)
        if form == "gated":
            self.token_delta = nn.Linear(width, states, bias=False)
            self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, visual: Tensor, question: Tensor, mask: Tensor) -> Tensor:
        """Visual tokens that have met the question.

        Args:
            visual: [batch, tokens, width].
            question: embeddings [batch, length, width].
            mask: bool [batch, length], False on padding: each row's own question counts and nothing else.
        """
        kept = evenly_spaced(visual, self.compress_to)
        weights = mask[..., None].to(question.dtype)
        context = (question * weights).sum(1) / weights.sum(1).clamp(min=1)
        x, gain, read = self.x_proj(kept), self.proj_B(context), self.proj_C(context)
        if self.form == "guide":
            return self.out_proj(averaged(gain[:, None] * x, self.proj_delta(context)).to(x.dtype) * read[:, None])
        step = F.softplus(self.token_delta(kept) + self.proj_delta(context)[:, None])
        one = x.new_ones(*x.shape[:2], 1)
        states, _ = selective_scan(gain[:, None] * x, step, -x.new_ones(x.shape[-1], 1), one, one)
        return kept + self.alpha * self.out_proj(states.to(x.dtype) * read[:, None])


def averaged(inputs: Tensor, logits: Tensor) -> Tensor:
    """h_t = (1 - delta) h_{t-1} + delta u_t from h = 0, with delta = sigmoid(logits) the same at all times.

    That is a convolution of u with delta (1 - delta)^t, done by Fourier transforms over twice the length.

    Args:
        inputs: u, [batch, length, channels].
        logits: [batch, channels].

    Returns:
        h, float32 [batch, length, channels].
    """
    length = inputs.shape[1]
    with torch.autocast(inputs.device.type, enabled=False):
        inputs, logits = inputs.float(), logits.float()[:, None]
        times = torch.arange(length, device=inputs.device, dtype=torch.float32)[:, None]
        weights = torch.sigmoid(logits) * torch.exp(-F.softplus(logits) * times)
        spectrum = torch.fft.rfft(inputs, 2 * length, dim=1) * torch.fft.rfft(weights, 2 * length, dim=1)
        return torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length]


def evenly_spaced(tokens: Tensor, count: int) -> Tensor:
    """`count` tokens at equal distances, first and last among them, positions cut to whole numbers; all where there are
    fewer."""
    length = tokens.shape[1]
    if length <= count:
        return tokens
    return tokens[:, [index * (length - 1) // (count - 1) if count > 1 else 0 for index in range(count)]]
