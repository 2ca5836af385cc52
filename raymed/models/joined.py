"""An InternVL put together: a ViT that was taken out of one, under a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from raymed.errors import UserError
from raymed.models.internvl import InternVL
from raymed.models.internvl_text import MARKS, read_tokenizer
from raymed.models.internvl_weights import CONFIG, load_internvl, untied
from raymed.models.vision_tower import VisionTower

ADDED = MARKS[1:]  # what InternVL adds to Qwen2's tokenizer, in its order
SHUFFLE = 0.5  # the pixel shuffle's ratio


def join(tower: VisionTower, language: Path, seed: int) -> tuple[InternVL, list[str]]:
    """An InternVL of a ViT and a language model, and what of it is new, in words.

    A Qwen2 folder gives language model and tokenizer; InternVL's marks are added to that, and the projector starts from
    random weights. An InternVL folder gives everything but the ViT, which has to be as wide as the one that it replaces.

    Args:
        seed: of what is new.

    Raises:
        UserError: the ViT is no InternViT, the language model is no Qwen2's, or the two do not fit.
    """
    if not isinstance(tower.config, InternVLVisionConfig):
        raise UserError(f"{tower.source} holds a {tower.config.model_type}; an InternVL has an InternViT")
    kind = _kind(language)
    if kind in ("internvl", "internvl_chat"):
        return _replaced(tower, language), []
    if kind != "qwen2":
        raise UserError(f"{language / CONFIG}: the language model {kind!r} is not supported, only Qwen2, or an InternVL's")
    torch.manual_seed(seed)
    return _new(tower, tower.config, language)


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / CONFIG).read_text("utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a model folder: its {CONFIG} cannot be read ({error!r})") from error


def _replaced(tower: VisionTower, folder: Path) -> InternVL:
    """The InternVL of a folder with another ViT."""
    network = load_internvl(folder, "sdpa")
    tokenizer = read_tokenizer(folder, network.lm_head.out_features)
    own: Any = network.config.vision_config
    ours: Any = tower.config
    if (own.hidden_size, own.patch_size) != (ours.hidden_size, ours.patch_size):
        raise UserError(
            f"the ViT of {tower.source} is {ours.hidden_size} wide, with patches of {ours.patch_size}; the one of {folder} "
            f"is {own.hidden_size} wide, with patches of {own.patch_size}: its projector does not fit. Give a Qwen2 folder"
        )
    network.config.vision_config = ours
    network.model.vision_tower = tower.build()
    _set_length(network.config)
    return InternVL(network, tokenizer)


def _new(tower: VisionTower, vision: InternVLVisionConfig, folder: Path) -> tuple[InternVL, list[str]]:
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, dtype=torch.float32, use_safetensors=True
        )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the loaders below it raise many kinds
        raise UserError(f"{folder} holds no usable Qwen2 in safetensors with its tokenizer: {error}") from error
    before = len(tokenizer)
    marks = [mark for mark in ADDED if mark not in tokenizer.get_vocab()]
    tokenizer.add_tokens(marks, special_tokens=True)
    inputs, outputs = (layer.weight.detach() for layer in (model.get_input_embeddings(), model.get_output_embeddings()))
    text = Qwen2Config.from_dict(model.config.to_dict() | {"vocab_size": len(tokenizer), "tie_word_embeddings": False})
    config = untied(InternVLConfig(vision_config=vision, text_config=text, downsample_ratio=SHUFFLE))
    _set_length(config)
    network = InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    network.model.vision_tower = tower.build()
    network.model.language_model.load_state_dict(
        {name: value for name, value in model.model.state_dict().items() if name != "embed_tokens.weight"}, strict=False
    )
    with torch.no_grad():
        drawn = torch.randn(len(marks), inputs.shape[1]) * text.initializer_range
        network.get_input_embeddings().weight.copy_(torch.cat([inputs[:before], drawn]))
        mean = outputs[:before].mean(dim=0, keepdim=True)  # as likely as an ordinary token, until they are learned
        network.lm_head.weight.copy_(torch.cat([outputs[:before], mean.expand(len(marks), -1)]))
        _draw(network.model.multi_modal_projector, text.initializer_range)
    return InternVL(network, tokenizer), ["the projector", *([f"the marks {' '.join(marks)}"] if marks else [])]


def _set_length(config: InternVLConfig) -> None:
    vision: Any = config.vision_config
    patches = vision.image_size[0] // vision.patch_size[0]
    config.image_seq_length = int((patches * config.downsample_ratio) ** 2)


def _draw(projector: nn.Module, width: float) -> None:
    for name, parameter in projector.named_parameters():
        values: Tensor = parameter
        if values.ndim > 1:
            values.normal_(std=width)
        elif name.endswith("bias"):
            values.zero_()
