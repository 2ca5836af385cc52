"""Texts, token by token, from the states of all that came before."""

from __future__ import annotations

import torch
from torch import Tensor

from raymed.systems.mamba_vlm.language_model import MambaLanguageModel
from raymed.systems.mamba_vlm.settings import GenerationSettings


@torch.no_grad()
def generate(
    model: MambaLanguageModel, embeddings: Tensor, mask: Tensor, end: int, settings: GenerationSettings
) -> list[list[int]]:
    """The new tokens of each row, without the end's; what a row generates does not depend on the others.

    Args:
        embeddings: prompts [batch, length, width].
        mask: bool [batch, length], False on padding, which follows.
        end: id of the token that ends a text.
    """
    texts: list[list[int]] = [[] for _ in range(len(embeddings))]
    draws = [torch.Generator().manual_seed(settings.seed) for _ in texts]
    open_rows = set(range(len(texts)))
    hidden, states = model.prefill(embeddings, mask)
    for position in range(settings.max_new_tokens):
        scores = model.logits(hidden).cpu()
        if position < settings.min_new_tokens:
            scores[:, end] = -torch.inf
        chosen = [_choose(row, text, draw, settings) for row, text, draw in zip(scores, texts, draws, strict=True)]
        open_rows -= {row for row in open_rows if chosen[row] == end}
        if not open_rows:
            break
        for row in open_rows:
            texts[row].append(chosen[row])
        hidden, states = model.step(model.embed(torch.tensor(chosen, device=hidden.device)), states)
    return texts


def _choose(scores: Tensor, text: list[int], draw: torch.Generator, settings: GenerationSettings) -> int:
    """The next token of a row; scores: [tokens]."""
    if text and settings.repetition_penalty != 1:
        used = torch.tensor(sorted(set(text)))
        past = scores[used]
        scores = scores.index_copy(
            0, used, torch.where(past > 0, past / settings.repetition_penalty, past * settings.repetition_penalty)
        )
    if not settings.sample:
        return int(scores.argmax())
    probabilities, order = (scores / settings.temperature).softmax(0).sort(descending=True, stable=True)
    before = probabilities.cumsum(0) - probabilities
    probabilities = probabilities * (before < settings.top_p)  # the first is always among them
    return int(order[torch.multinomial(probabilities, 1, generator=draw)])
