"""Texts, token by token, from the states of all that came before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raymed.systems.mamba_vlm.language_model import MambaLanguageModel
from raymed.systems.mamba_vlm.settings import GenerationSettings

LONGEST_TAIL = 32  # tokens that are compared with those before them


@torch.no_grad()
def generate(
    model: MambaLanguageModel,
    embeddings: Tensor,
    mask: Tensor,
    end: int,
    settings: GenerationSettings,
    headings: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """The new tokens of each row, without the end's; what a row generates does not depend on the others.

    Args:
        embeddings: prompts [batch, length, width].
        mask: bool [batch, length], False on padding, which follows.
        end: id of the token that ends a text.
        headings: tokens of `settings.headers`, each with what parts it from the text before it.
    """
    texts = [_Text(settings, end, headings) for _ in range(len(embeddings))]
    hidden, states = model.prefill(embeddings, mask)
    for _ in range(settings.max_new_tokens + sum(map(len, headings))):
        scores = model.logits(hidden).cpu()
        chosen = [text.choose(row) for row, text in zip(scores, texts, strict=True)]
        if all(text.is_over for text in texts):
            break
        hidden, states = model.step(model.embed(torch.tensor(chosen, device=hidden.device)), states)
    return [text.tokens for text in texts]


class _Text:
    """A row's text in the making."""

    def __init__(self, settings: GenerationSettings, end: int, headings: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.is_over = False
        self._settings, self._end = settings, end
        self._draws = torch.Generator().manual_seed(settings.seed)
        self._headings = [list(heading) for heading in headings]
        self._forced = self._headings.pop(0) if headings else []  # what is left of a heading that was begun
        self._section = settings.max_new_tokens // max(1, len(headings))  # tokens below a heading
        self._begun = len(self._forced)  # where those of this section begin

    def choose(self, scores: Tensor) -> int:
        """The next token, which is added to the text; the end's where it is over.

        Args:
            scores: [tokens].
        """
        if self.is_over:
            return self._end
        if len(self.tokens) < self._settings.min_new_tokens:
            scores = scores.index_fill(0, torch.tensor(self._end), -torch.inf)
        token = self._forced.pop(0) if self._forced else self._generated(scores)
        if self._headings and not self._forced and (token == self._end or len(self.tokens) - self._begun >= self._section):
            self._begin_section()
            token = self._forced.pop(0)
        if token == self._end:
            self.is_over = True
            return token
        self.tokens.append(token)
        if repeated := _repeated(self.tokens[self._begun :], self._settings.stop_repeats):
            del self.tokens[-repeated:]
            self.is_over = not self._headings
            if self._headings:
                self._begin_section()
        return token

    def _begin_section(self) -> None:
        self._forced = self._headings.pop(0)
        self._begun = len(self.tokens) + len(self._forced)

    def _generated(self, scores: Tensor) -> int:
        settings = self._settings
        if self.tokens and settings.repetition_penalty != 1:
            used = torch.tensor(sorted(set(self.tokens)))
            past, penalty = scores[used], settings.repetition_penalty
            scores = scores.index_copy(0, used, torch.where(past > 0, past / penalty, past * penalty))
        if not settings.sample:
            return int(scores.argmax())
        probabilities, order = (scores / settings.temperature).softmax(0).sort(descending=True, stable=True)
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities * (before < settings.top_p)  # the first is always among them
        return int(order[torch.multinomial(probabilities, 1, generator=self._draws)])


def _repeated(tokens: list[int], times: int) -> int:
    """How many of the last tokens only say again what stands before them: a tail that stands `times` times in a row is kept
    once. 0 where none does."""
    for length in range(1, min(LONGEST_TAIL, len(tokens) // times) + 1 if times else 0):
        tail = tokens[-length:]
        if all(tokens[len(tokens) - (back + 1) * length : len(tokens) - back * length] == tail for back in range(1, times)):
            return (times - 1) * length
    return 0
