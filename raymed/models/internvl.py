"""InternVL as a classifier: it reads a picture and the question ``<cls>: 0|1|2|3.``, and its first answer token decides.

The question is the same for every picture, so nothing is padded, and only the places where an answer is predicted go
through the output layer: with 151,674 tokens in the vocabulary, logits at every place would cost more memory than the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from raymed.errors import UserError
from raymed.models import adapt
from raymed.models.backbones import input_norm, normalisation
from raymed.models.internvl_config import check_size, preset_config
from raymed.models.internvl_text import ChoicePrompt, byte_tokenizer, read_tokenizer, token_id
from raymed.models.internvl_weights import (
    WEIGHTS,
    load_internvl,
    read_config,
    side,
    write_image_processor,
)
from raymed.models.marks import CONTEXT, TURN_END
from raymed.models.model_folders import MODEL_FILES, find_model
from raymed.models.packed_attention import FLASH, flash_attn_version
from raymed.models.positions import fit_positions, start_positions
from raymed.models.settings import ModelSettings
from raymed.storage.seal import check_seal

log = logging.getLogger("raymed")

VISION_TARGETS = ("q_proj", "k_proj", "v_proj", "projection_layer", "fc1", "fc2")
LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def attention_kernel(wanted: str) -> str:
    """transformers' name of the attention kernel that `wanted` stands for on this machine."""
    if wanted != "auto":
        return wanted
    return FLASH if torch.cuda.is_available() and flash_attn_version() else "sdpa"


def whole_rows(language_model: PreTrainedModel) -> dict[str, None] | None:
    """The mask of rows that are one sample each: none but the kernel's own causal one.

    Without being told, transformers reads from the device whether samples were packed. None where it has to make a mask.
    """
    config: Any = language_model.config
    fused = config._attn_implementation in ("sdpa", FLASH)
    return {"full_attention": None} if fused and {*config.layer_types} == {"full_attention"} else None


class InternVL(nn.Module):
    """InternVL with the tokenizer it was trained with, whatever it is trained for.

    Attributes:
        most_tiles: that a picture is cut into for it.
        network: transformers' InternVL.
        tokenizer: the one it was trained with.
        normalise: from uint8 pictures to what the network takes.
    """

    most_tiles = 1

    def __init__(self, network: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        vision: Any = network.config.vision_config
        self.normalise = input_norm(vision)
        network.config.image_token_id = token_id(tokenizer, CONTEXT)
        text: Any = network.config.text_config
        text.eos_token_id = token_id(tokenizer, TURN_END)

    @property
    def image_backbone(self) -> nn.Module:
        return self.network.model.vision_tower

    @property
    def description(self) -> dict[str, str]:
        """Facts to tag a run with."""
        return {"backbone": "internvl", "attention": self.network.config._attn_implementation}

    def compute_in_float32(self) -> None:
        """Attention that takes float32, which flash-attn does not."""
        if self.network.config._attn_implementation == FLASH:
            log.info("computing in float32, which flash-attn does not take: attention is torch's own")
            self.network.set_attn_implementation("sdpa")

    def image_features(self, pixels: Tensor) -> Tensor:
        """Projected image tokens [rows, (size / 28)^2, hidden] of uint8 pictures [rows, 1 or 3, size, size]."""
        model = self.network.model
        inputs = self.normalise(pixels, model.multi_modal_projector.linear_1.weight.dtype)
        return model.get_image_features(inputs).pooler_output

    def export(self, folder: Path) -> None:
        """Write a native checkpoint, which transformers loads: merged LoRA, the tokenizer, and how pictures are treated."""
        state = adapt.merged_state(self.network)
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
        self.network.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        vision: Any = self.network.config.vision_config
        write_image_processor(folder, side(vision.image_size), *normalisation(vision), self.most_tiles)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode:
            adapt.rest_frozen(self)
        return self


class InternVLClassifier(InternVL):
    """InternVL asked for one of the declared choices.

    Attributes:
        prompt: the question and its choices as token ids.
    """

    text: Tensor  # tokens before the picture, after it, and of the choices
    choices: Tensor

    def __init__(
        self, network: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, codes: Sequence[str]
    ) -> None:
        super().__init__(network, tokenizer)
        self.prompt = prompt = ChoicePrompt.of(tokenizer, codes)
        # Buffers go to the device once; a list that is made a tensor there in every pass would wait for it.
        self.register_buffer("text", torch.tensor(prompt.before + prompt.after + prompt.choices), persistent=False)
        self.register_buffer("choices", torch.tensor(prompt.choices), persistent=False)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Ask for the class of each picture.

        Args:
            pixels: uint8 [rows, 1 or 3, size, size].
            labels: class indices [rows]; with them the answer and the end of the turn are scored as well.

        Returns:
            `logits` [rows, classes] of the choices' tokens; how many `tokens` [rows] were read; with labels also
            `language_loss` [rows]: the mean cross-entropy over the whole vocabulary of the answer and the end of the turn.
        """
        prompt, rows, choices = self.prompt, len(pixels), self.choices
        features = self.image_features(pixels)
        embed = self.network.get_input_embeddings()
        # one look-up for question and answers: the gradient of each is a table as large as the vocabulary
        text = embed(self.text)
        before, after, answers = text.split([len(prompt.before), len(prompt.after), len(prompt.choices)])
        sequence = [before.expand(rows, -1, -1), features, after.expand(rows, -1, -1)]
        if labels is not None:
            sequence.append(answers[labels][:, None])
        language_model = self.network.model.language_model
        hidden = language_model(
            inputs_embeds=torch.cat(sequence, dim=1), attention_mask=whole_rows(language_model), use_cache=False
        ).last_hidden_state
        tokens = hidden.new_full((rows,), hidden.shape[1], dtype=torch.float32)
        if labels is None:
            return {"logits": self.network.lm_head(hidden[:, -1])[:, choices], "tokens": tokens}
        vocabulary = self.network.lm_head(hidden[:, -2:])  # the answer is predicted at the last place but one
        targets = torch.stack([choices[labels], torch.full_like(labels, prompt.end)], dim=1)
        language = F.cross_entropy(vocabulary.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return {"logits": vocabulary[:, 0, choices], "tokens": tokens, "language_loss": language.view(rows, 2).mean(1)}


def check(settings: ModelSettings, codes: Sequence[str], size: int) -> None:
    """Refuse choices, picture sizes and settings that the network cannot take, without loading its weights.

    Raises:
        UserError: says which.
    """
    check_settings(settings, size)
    ChoicePrompt.of(tokenizer_of(settings), codes)


def build(settings: ModelSettings, codes: Sequence[str], size: int) -> InternVLClassifier:
    """InternVL with its starting weights, adapted as the settings say."""
    return InternVLClassifier(build_network(settings, size), tokenizer_of(settings), codes)


def load(folder: Path, codes: Sequence[str]) -> InternVLClassifier:
    """The network that `InternVLClassifier.export` wrote."""
    network = load_internvl(folder, "sdpa")  # in float32, which flash-attn does not take
    return InternVLClassifier(network, read_tokenizer(folder, network.lm_head.out_features), codes)


def config_of(settings: ModelSettings, size: int) -> InternVLConfig:
    """The configuration of the network that the settings name, for pictures of size x size."""
    if settings.path is None:
        return preset_config(settings.preset, size)
    return read_config(find_model(settings.path, MODEL_FILES))


def tokenizer_of(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of the network that the settings name; presets have one of single bytes."""
    if settings.path is None:
        return byte_tokenizer()
    text: Any = read_config(find_model(settings.path, MODEL_FILES)).text_config
    return read_tokenizer(find_model(settings.path, MODEL_FILES), text.vocab_size)


def check_settings(settings: ModelSettings, size: int) -> None:
    """Refuse picture sizes and settings that the network cannot take, without loading its weights.

    Raises:
        UserError: says which.
    """
    if settings.dropout:
        raise UserError("model.dropout is for image backbones; InternVL has none: set it to 0")
    if settings.attention == FLASH and not flash_attn_version():
        raise UserError(
            f"model.attention {FLASH} needs the package flash-attn, which is not installed here: leave it at auto"
        )
    config = config_of(settings, size)
    check_size(config, size)
    if _made_for(config) != size:
        log.warning(
            "%s was made for pictures of %d pixels: its positions are resampled for %d",
            settings.path,
            _made_for(config),
            size,
        )
    vision: Any = config.vision_config
    if settings.vision_layer is not None and not -vision.num_hidden_layers <= settings.vision_layer < 0:
        raise UserError(
            f"model.vision_layer is {settings.vision_layer}: it must be between -1 (the output of the image backbone's last "
            f"block) and -{vision.num_hidden_layers}"
        )


def build_network(settings: ModelSettings, size: int) -> InternVLForConditionalGeneration:
    """transformers' InternVL with its starting weights, adapted as the settings say."""
    attention = attention_kernel(settings.attention)
    if settings.path is not None:
        folder = find_model(settings.path, MODEL_FILES)
        check_seal(folder)
        network = load_internvl(folder, attention)
        if _made_for(network.config) != size:
            fit_positions(network.model.vision_tower, size)
            network.config.image_seq_length = (size // 28) ** 2
    else:
        config = config_of(settings, size)
        network = InternVLForConditionalGeneration._from_config(config, attn_implementation=attention)
        start_positions(network.model.vision_tower)
    _adapt(network, settings)
    return network


def _made_for(config: InternVLConfig) -> int:
    """The side of the pictures that a network was made for."""
    vision: Any = config.vision_config
    return side(vision.image_size)


def _adapt(network: InternVLForConditionalGeneration, settings: ModelSettings) -> None:
    model = network.model
    if settings.vision_layer is not None:
        network.config.vision_feature_layer = settings.vision_layer
    if settings.drop_path:
        adapt.add_drop_path(model.vision_tower, settings.drop_path)
    if settings.freeze_vision:
        adapt.freeze(model.vision_tower, settings.trainable_blocks)
    if settings.vision_lora:
        adapt.add_lora(model.vision_tower, settings.vision_lora, VISION_TARGETS)
    if settings.freeze_projector:
        adapt.freeze(model.multi_modal_projector)
    if settings.freeze_language or settings.language_lora:
        adapt.freeze(model.language_model)
        adapt.freeze(network.lm_head)
    if settings.language_lora:
        adapt.add_lora(model.language_model, settings.language_lora, LANGUAGE_TARGETS)
    layer: Any = network.config.vision_feature_layer
    blocks = adapt.blocks_of(model.vision_tower)
    for block in blocks[layer:] if layer >= 0 else blocks[layer:][1:]:
        adapt.freeze(block)  # nothing sees its output
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("every part of the model is frozen: nothing is left to train")
    if settings.gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
