"""What the report writer's second stage costs against the plain way, and a text token by token against reading it all again.

    python benchmarks/report_writer.py                                 # the figures of docs/log.md: minutes on a CPU core
    python benchmarks/report_writer.py --width 64 --layers 1 --words 20 --steps 1

The language model has the published models' vocabulary and random weights; encoder and language model are frozen. The ways
take turns; times are CPU time.

- plain: transformers' Mamba, scores of all tokens at all places, and the encoder looks at the picture in every step.
- ours: our scan, scores only where they are read, the encoder's map computed once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from machine import show
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from raymed.systems.mamba_vlm.captions import Captions
from raymed.systems.mamba_vlm.generation import generate
from raymed.systems.mamba_vlm.language_model import LanguageModel
from raymed.systems.mamba_vlm.network import ReportWriter
from raymed.systems.mamba_vlm.settings import (
    BridgeSettings,
    GenerationSettings,
    InteractionSettings,
    LanguageSettings,
    VisionSettings,
)
from raymed.systems.mamba_vlm.tiny_language_model import byte_tokenizer
from raymed.systems.mamba_vlm.vision import encoder_plan

VOCABULARY = 50280
VISION = VisionSettings(preset="nnunet", output_stage=4, target_side=28, freeze=True)


def main(width: int = 256, layers: int = 4, words: int = 100, size: int = 256, batch: int = 2, steps: int = 3) -> None:
    """Time the ways in turn.

    Args:
        width: Of the language model.
        layers: Of the language model.
        words: Tokens of a report, learned and generated.
        size: Side of the pictures.
        batch: Reports of a step.
        steps: Timed steps of each way.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, eos_token_id=0, pad_token_id=0)
    settings = LanguageSettings(freeze=True, gradient_checkpointing=False)
    language = LanguageModel(settings, config, byte_tokenizer(), None)
    network = ReportWriter(encoder_plan(VISION), VISION, BridgeSettings(), InteractionSettings(), language)
    network.language_model.vocabulary = VOCABULARY
    theirs = MambaForCausalLM(config).eval().requires_grad_(False)
    theirs.load_state_dict(network.language_model.state_dict(), strict=False)
    pictures, captions = torch.randn(batch, 1, 1, size, size), texts(batch, words)

    def ours() -> Tensor:
        parts = (captions.tokens, captions.prompt_lengths, captions.rows, captions.positions, captions.targets)
        return network(*parts, pictures=pictures)["token_losses"].mean()

    def plain() -> Tensor:
        visual = network.visual_tokens(network.features(pictures))
        embeddings = torch.cat([visual, theirs.get_input_embeddings()(captions.tokens)], 1)
        scores = theirs(inputs_embeds=embeddings).logits
        labels = torch.full(scores.shape[:2], -100)
        labels[captions.rows, visual.shape[1] + captions.positions] = captions.targets
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten())

    difference = float((ours() - plain()).detach().abs())
    ways: dict[str, Callable[[], Tensor]] = {"plain": plain, "ours": ours}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(steps):
        for name, way in ways.items():
            times[name].append(trained(network, way))
    seconds = {name: min(each) for name, each in times.items()}
    rates = {name: batch / spent for name, spent in seconds.items()}
    cached, again = generated(network, words)
    figures = {
        "samples_per_second": rates,
        "difference": difference,
        "tokens_per_second": {"cached": cached, "again": again},
    }
    lines = [
        f"stage 2: plain {rates['plain']:.2f} reports a second of CPU, ours {rates['ours']:.2f}: "
        f"{rates['ours'] / rates['plain']:.1f} times; losses differ by {difference:.1e}",
        f"a text of {words} tokens: {cached:.1f} tokens a second from states, {again:.1f} reading all of it again for each",
    ]
    show(f"report writer, width {width}, {layers} layers, {size} x {size} pictures, batch {batch}", lines, figures)


def texts(batch: int, words: int) -> Captions:
    """Questions of 12 tokens, and reports."""
    question = 12
    tokens = torch.randint(1, VOCABULARY, (batch, question + words))
    positions = torch.arange(question - 1, question + words - 1)
    return Captions(
        tokens,
        torch.full((batch,), question),
        torch.arange(batch).repeat_interleave(words),
        positions.repeat(batch),
        tokens[:, question:].flatten(),
        0,
    )


def trained(network: ReportWriter, way: Callable[[], Tensor]) -> float:
    """CPU seconds of a forward and a backward pass."""
    network.zero_grad()
    started = time.process_time()
    way().backward()
    return time.process_time() - started


@torch.no_grad()
def generated(network: ReportWriter, words: int) -> tuple[float, float]:
    """Tokens a second of CPU: from states, and by computing the whole sequence for each token."""
    model = network.language_model
    prompt = torch.randn(1, 93, model.width)  # 81 visual tokens and a question
    settings = GenerationSettings(max_new_tokens=words, min_new_tokens=words, repetition_penalty=1.0, stop_repeats=0)

    started = time.process_time()
    text = generate(model, prompt, torch.ones(1, 93, dtype=torch.bool), 0, settings)[0]
    cached = words / (time.process_time() - started)
    started, again = time.process_time(), list[int]()
    for _ in range(words):
        sequence = torch.cat([prompt, model.embed(torch.tensor([again], dtype=torch.int64))], 1)
        scores = model.logits(model(sequence)[:, -1])[0]
        scores[0] = -torch.inf
        again.append(int(scores.argmax()))
    assert again == text, "the two ways write different texts"
    return cached, words / (time.process_time() - started)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
