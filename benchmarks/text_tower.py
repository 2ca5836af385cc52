"""What a training step of `clip` pays for texts: those of the classes once, against a caption for every picture.

    python benchmarks/text_tower.py                                  # the figures of docs/log.md: minutes on two CPU cores
    python benchmarks/text_tower.py --layers 1 --width 64 --steps 1  # seconds, to try it

The text encoder has BERT-base's shape and bert-base-chinese's number of tokens, with random weights; a step is its forward
and backward pass in training mode. The ways take turns; times are CPU time.

- captions: the text of its class for every picture of the batch, as upstream does.
- classes: the texts of the classes, once.
- frozen: the same, from an encoder that is not trained; only the projection has a backward pass.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from machine import show
from torch import Tensor
from transformers import BertConfig

from raymed.models.adapt import freeze
from raymed.models.backbones import PRESETS
from raymed.models.text_encoder import TextModel, character_tokenizer
from raymed.systems.clip.network import ClipClassifier

CLASSES = {
    "normal": "这是一张显示正常解剖结构的胸部X光图像，组织清晰，没有异常阴影",
    "bacterial": "这是一张显示细菌性肺炎的胸部X光图像，可见肺叶实变影",
    "viral": "这是一张显示病毒性肺炎的胸部X光图像，可见弥漫磨玻璃影",
    "pneumocystis": "这是一张显示肺孢子菌肺炎的胸部X光图像，可见双肺间质改变",
}
SIZE = 32  # of pictures, which play no part here


def main(batch: int = 64, width: int = 768, layers: int = 12, vocabulary: int = 21128, steps: int = 5) -> None:
    """Time the ways in turn.

    Args:
        batch: Pictures of a step.
        width: Of the text encoder.
        layers: Of the text encoder.
        vocabulary: Tokens of the text encoder.
        steps: Timed steps of each way.
    """
    module = classifier(width, layers, vocabulary)
    labels = torch.arange(batch) % len(CLASSES)
    difference = check_same(module, labels)
    ways: dict[str, Callable[[], Tensor]] = {
        "captions": lambda: caption_features(module, labels),
        "classes": lambda: module.prompt_features()[labels],
    }
    module.train()
    for way in ways.values():
        timed(module, way)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(steps):
        for name, way in ways.items():
            times[name].append(timed(module, way))
        print(f"step {step + 1}: " + ", ".join(f"{name} {each[-1]:.2f} s" for name, each in times.items()), file=sys.stderr)
    freeze(module.text_encoder)
    module.train()
    timed(module, ways["classes"])  # encodes them
    times["frozen"] = [timed(module, ways["classes"]) for _ in range(steps)]
    seconds = {name: statistics.median(each) for name, each in times.items()}
    figures = {
        "seconds": seconds,
        "classes_of_captions": seconds["classes"] / seconds["captions"],
        "frozen_of_captions": seconds["frozen"] / seconds["captions"],
        "difference": difference,
    }
    lines = [
        f"{name:9} {seconds[name] * 1000:9.1f} ms of CPU a step "
        f"(fastest {min(each) * 1000:.1f}, slowest {max(each) * 1000:.1f})"
        for name, each in times.items()
    ]
    lines.append(
        f"{len(CLASSES)} classes, {module.tokens.shape[1]} tokens, batch {batch}: classes cost "
        f"{figures['classes_of_captions']:.3f} of captions, frozen {figures['frozen_of_captions']:.5f}; "
        f"features differ by at most {difference:.1e}"
    )
    show("text tower", lines, figures)


def classifier(width: int, layers: int, vocabulary: int) -> ClipClassifier:
    """A CLIP classifier whose text encoder has the wanted shape."""
    torch.manual_seed(0)
    texts = [(text,) for text in CLASSES.values()]
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    text = TextModel(config, character_tokenizer(list(CLASSES.values())), None)
    return ClipClassifier(PRESETS["tiny"](SIZE), text, list(CLASSES), texts, SIZE, embed_dim=512, temperature=0.07)


def caption_features(module: ClipClassifier, labels: Tensor) -> Tensor:
    """Unit vectors [rows, embed_dim] of a caption per picture, each encoded by itself."""
    encoded = module.text_encoder(module.tokens[labels], module.mask[labels])
    return F.normalize(module.text_projection(encoded), dim=1)


@torch.no_grad()
def check_same(module: ClipClassifier, labels: Tensor) -> float:
    """The largest difference between the two ways' features, without dropout."""
    module.eval()
    return float((caption_features(module, labels) - module.prompt_features()[labels]).abs().max())


def timed(module: ClipClassifier, way: Callable[[], Tensor]) -> float:
    """CPU seconds, of all threads, of a forward and a backward pass: other work on the machine hardly changes them."""
    module.zero_grad()
    started = time.process_time()
    way().sum().backward()
    return time.process_time() - started


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
