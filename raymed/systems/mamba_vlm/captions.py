"""Questions and answers as token arrays: which tokens a row reads, and where its answer is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_TOKENS = 128  # the most of a question that is read when texts are generated


@dataclass(frozen=True)
class Captions:
    """The texts of a batch; padding follows each row. What is learned is told by length, never by token id: the end of a
    text and padding share one.

    Attributes:
        tokens: ids of question, newline, answer and end [batch, length].
        prompt_lengths: how many of a row's tokens are question and newline, [batch].
        rows: of each supervised token, its row, [learned].
        positions: where in its row the token before it lies, whose state predicts it, [learned].
        targets: its id, [learned].
        cut: how many rows were longer than allowed.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    cut: int

    @property
    def learned(self) -> Tensor:
        """How many tokens of each row are learned, [batch]."""
        return torch.bincount(self.rows, minlength=len(self.tokens))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Ids of the question and the newline after it."""
    return list(tokenizer(f"{question}\n", add_special_tokens=False)["input_ids"])


def cut_prompt(ids: list[int], most: int) -> list[int]:
    """At most so many of a prompt's ids: its beginning, and the newline that ends it."""
    return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]


def encode_captions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], answers: Sequence[str], end: int, max_length: int
) -> Captions:
    """Question, newline, answer and end of each row, up to `max_length` tokens.

    Of a longer row the question is cut first, down to its newline; an answer that is too long by itself is cut and has no
    end: the model does not learn to stop within a sentence.
    """
    rows: list[list[int]] = []
    prompts: list[int] = []
    cut = 0
    for question, answer in zip(questions, answers, strict=True):
        prompt = prompt_ids(tokenizer, question)
        text = [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]
        cut += len(prompt) + len(text) > max_length
        prompt = cut_prompt(prompt, max(1, max_length - len(text)))
        rows.append([*prompt, *text][:max_length])
        prompts.append(len(prompt))
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for index, ids in enumerate(rows):
        tokens[index, : len(ids)] = torch.tensor(ids)
    counts = [len(ids) - prompt for ids, prompt in zip(rows, prompts, strict=True)]
    return Captions(
        tokens,
        torch.tensor(prompts),
        torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts)),
        torch.cat([torch.arange(prompt - 1, len(ids) - 1) for ids, prompt in zip(rows, prompts, strict=True)]),
        torch.tensor([token for ids, prompt in zip(rows, prompts, strict=True) for token in ids[prompt:]]),
        cut,
    )
