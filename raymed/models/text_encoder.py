"""Text encoders: BERT-like and CLIP text models from local folders, and a small one over characters with random weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers.utils.logging
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from raymed.errors import UserError
from raymed.models.backbone_weights import refuse_keys
from raymed.models.model_folders import ENCODER_FILES, find_model
from raymed.models.settings import CHARACTERS

log = logging.getLogger("raymed")

MAX_LENGTH = 128  # tokens, those that open and close a text included
CLIP = "clip_text_model"


class TextEncoder(nn.Module):
    """From tokens to one vector per text: the first token's ([CLS]) of BERT-like models, the end's of CLIP's.

    Attributes:
        network: transformers' model.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        network: Any = AutoModel.from_config(config)
        if config.model_type != CLIP and isinstance(getattr(network, "pooler", None), nn.Module):
            network.pooler = None  # the first token's state is taken as it is
        self.network: PreTrainedModel = network

    @property
    def width(self) -> int:
        return int(self.network.config.hidden_size)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Vectors [texts, width] of padded token ids and their mask, int64 [texts, length]; None where none is padded."""
        if mask is not None and self.network.config._attn_implementation == "sdpa":
            # Whole, so that transformers does not read from the device whether it masks anything.
            mask = mask.bool()[:, None, None].expand(-1, 1, tokens.shape[1], -1)
            if self.network.config.model_type == CLIP:
                mask = mask.tril()
        output = self.network(input_ids=tokens, attention_mask=mask)
        return output.pooler_output if self.network.config.model_type == CLIP else output.last_hidden_state[:, 0]


@dataclass(frozen=True, eq=False)
class TextModel:
    """A text model before its weights are read.

    Attributes:
        config: its configuration.
        tokenizer: the one it was trained with.
        folder: where its weights lie; None for random ones.
    """

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    folder: Path | None

    @classmethod
    def find(cls, name: str, texts: Sequence[str]) -> TextModel:
        """The model that a name or a path stands for; ``characters`` has those of `texts` as its vocabulary.

        Raises:
            UserError: there is none, or it is not a text encoder.
        """
        if name == CHARACTERS:
            tokenizer = character_tokenizer(texts)
            return cls(_character_config(len(tokenizer)), tokenizer, None)
        return cls.open(find_model(name, ENCODER_FILES))

    @classmethod
    def open(cls, folder: Path) -> TextModel:
        """The model in a folder, as transformers saves it.

        Raises:
            UserError: configuration or tokenizer are missing, of another kind, or do not belong together.
        """
        try:
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the loaders below it raise many kinds
            raise UserError(f"{folder} holds no usable text encoder: {error}. It needs {ENCODER_FILES}") from error
        config = config.text_config if config.model_type == "clip" else config
        if config.model_type != CLIP:
            first = tokenizer("")["input_ids"][:1]
            if getattr(config, "is_encoder_decoder", False) or not first or first[0] != tokenizer.cls_token_id:
                raise UserError(
                    f"{folder}: a model of type {config.model_type!r} does not open a text with a [CLS] token, whose state "
                    "would be the text's: take a BERT-like model or CLIP's"
                )
        if len(tokenizer) > config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: they do not belong "
                "together"
            )
        return cls(config, tokenizer, folder)

    def build(self) -> TextEncoder:
        """The encoder with its starting weights.

        Raises:
            UserError: keys are missing, unknown or of another shape.
        """
        encoder = TextEncoder(self.config)
        if self.folder is not None:
            _load_weights(encoder.network, self.folder)
        return encoder

    def tokenize(self, names: Sequence[str], texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Padded token ids and their mask, int64 [texts, length], of all classes' texts in order.

        Raises:
            UserError: a text is too long, or cannot be told from another class's; names the class.
        """
        limit = min(MAX_LENGTH, getattr(self.config, "max_position_embeddings", MAX_LENGTH))
        seen: dict[tuple[int, ...], str] = {}
        rows: list[list[int]] = []
        for name, prompts in zip(names, texts, strict=True):
            for prompt in prompts:
                ids = list(self.tokenizer(prompt)["input_ids"])
                if len(ids) > limit:
                    raise UserError(
                        f"the text of class {name!r} has {len(ids)} tokens, and the text encoder takes {limit}: "
                        f"shorten {prompt!r}"
                    )
                self._check_known(name, prompt, ids)
                other = seen.setdefault(tuple(ids), name)
                if other != name:
                    raise UserError(
                        f"the texts of the classes {other!r} and {name!r} look alike to the text encoder, which knows other "
                        f"words or does not tell capitals: write {prompt!r} differently"
                    )
                rows.append(ids)
        longest = max(map(len, rows))
        tokens = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(tokens)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        return tokens, mask

    def _check_known(self, name: str, prompt: str, ids: Sequence[int]) -> None:
        unknown, special = self.tokenizer.unk_token_id, set(self.tokenizer.all_special_ids)
        if unknown in (None, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) or unknown not in ids:
            return  # CLIP's tokenizer knows every byte, and calls the end of a text unknown
        if not set(ids) - special:
            raise UserError(f"the text encoder knows no word of the text of class {name!r}: {prompt!r}")
        log.warning(
            "the text encoder does not know %d of the %d tokens of the text of class %r: %s",
            list(ids).count(unknown),
            len(ids),
            name,
            prompt,
        )


def character_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer of single characters with those of `texts` as its vocabulary."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: number for number, token in enumerate([*special, *sorted(set("".join(texts)))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def _character_config(vocabulary: int) -> PreTrainedConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # about 1 / sqrt(width); with 0.02 all texts look the same to so narrow a network
    )


def _load_weights(network: PreTrainedModel, folder: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # its table of keys says "can be ignored" of what is refused below
    source: Any = CLIPTextModel if network.config.model_type == CLIP else AutoModel
    try:
        loaded, report = source.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all at once
        )
    except Exception as error:  # files of weights that are damaged, or hold something else, raise many kinds
        raise UserError(f"cannot load the text encoder in {folder}: {error}") from error
    parts = {name for name, _ in network.named_children()}  # what else a file holds is heads for other tasks
    inner = {key: key.split(f"{network.base_model_prefix}.", 1)[-1] for key in report["unexpected_keys"]}
    refuse_keys(
        folder,
        {
            "missing": [key for key in report["missing_keys"] if not key.startswith("pooler.")],
            "unexpected": [key for key, name in inner.items() if name.split(".")[0] in parts],
            "of another shape": [str(entry[0]) for entry in report["mismatched_keys"]],
        },
    )
    state = loaded.state_dict()
    taken = network.state_dict().keys()
    network.load_state_dict({key: state[key] for key in taken})
    log.info("text encoder: all %d weights of %s taken", len(taken), folder)
