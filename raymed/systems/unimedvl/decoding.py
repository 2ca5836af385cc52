"""Text, token by token, after what was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raymed.systems.unimedvl.context import Context, read_text
from raymed.systems.unimedvl.tool_settings import TextSettings

if TYPE_CHECKING:
    from raymed.systems.unimedvl.network import UniMedVL
    from raymed.systems.unimedvl.tokens import TextTokens

CUT = "\N{REPLACEMENT CHARACTER}"  # what is read of the first bytes of a character


def write(
    network: UniMedVL, context: Context, tokens: TextTokens, settings: TextSettings, draws: torch.Generator
) -> Iterator[int]:
    """Ids of an answer, one by one, without its marks; it ends where the network ends it, or at the longest length."""
    token = tokens.start
    for _ in range(settings.max_new_tokens - 1):
        context, logits = read_text(network, context, [token])
        token = _choose(logits, settings, draws)
        if token == tokens.end:
            return
        yield token


def _choose(logits: Tensor, settings: TextSettings, draws: torch.Generator) -> int:
    if not settings.do_sample:
        return int(logits.argmax())
    probabilities = (logits / settings.temperature).softmax(0)
    return int(torch.multinomial(probabilities.cpu(), 1, generator=draws))  # on the host, whatever computed them


def pieces(ids: Iterator[int], tokens: TextTokens) -> Iterator[str]:
    """The text of ids as it comes, in pieces of whole characters."""
    read: list[int] = []
    shown = ""
    for token in ids:
        read.append(token)
        text = tokens.text(read)
        if not text.endswith(CUT):  # the rest of a character is to come
            yield text[len(shown) :]
            shown = text
    rest = tokens.text(read).removesuffix(CUT)[len(shown) :]  # the longest length may cut a character
    if rest:
        yield rest
