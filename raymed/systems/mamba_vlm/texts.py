"""The texts that a network writes about records."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from raymed.data.record import Record
from raymed.systems.mamba_vlm.captions import PROMPT_TOKENS, cut_prompt, prompt_ids
from raymed.systems.mamba_vlm.network import ReportWriter
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import GenerationSettings

CUT = "\N{REPLACEMENT CHARACTER}"  # what is read of the first bytes of a character


@torch.no_grad()
def generate_texts(
    recipe: ReportRecipe, network: ReportWriter, records: Sequence[Record], settings: GenerationSettings
) -> list[str]:
    """The text of each record's pictures and question, trimmed, of whole characters; empty where the network has nothing to
    say, be it below headings that it must have.

    Encoder and bridge may be on another device than the language model. Of a question's tokens the first 128 are read, the
    newline after it included.
    """
    reports, seen = recipe.seen(records)
    device = next(network.encoder.parameters()).device
    tokenizer = recipe.language_model.tokenizer
    prompts = [cut_prompt(prompt_ids(tokenizer, question), PROMPT_TOKENS) for question in reports.questions]
    features = network.features(seen["pictures"].to(device))
    if features.is_cuda:
        torch.cuda.empty_cache()  # the language model may need it
    mask = seen["mask"].to(device) if "mask" in seen else None
    headings = [f"\n{header}:" if place else f"{header}:" for place, header in enumerate(settings.headers)]
    headed = [tokenizer(heading, add_special_tokens=False)["input_ids"] for heading in headings]
    texts = [
        _whole(str(tokenizer.decode(ids, skip_special_tokens=True)), headings)
        for ids in network.generate(prompts, features, settings, mask, headed)
    ]
    return ["" if text == "".join(headings) else text for text in texts]


def _whole(text: str, headings: Sequence[str]) -> str:
    """A text without the part of a character that a limit of tokens left at its end, or before a heading."""
    for heading in headings:
        text = re.sub(f"{CUT}(?={re.escape(heading)})", "", text)
    return text.removesuffix(CUT).strip()
