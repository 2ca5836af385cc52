"""The language model: Mamba as transformers keeps it (`state-spaces/mamba-*-hf`), computed with the mixer of this system.

Layers are computed again in the backward pass one by one, whether the model trains or not, and sequences go on from states
at their own length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, MambaConfig, PreTrainedTokenizerBase

from raymed.errors import UserError
from raymed.models.adapt import add_lora
from raymed.models.backbone_weights import refuse_keys
from raymed.models.internvl_weights import read_state
from raymed.systems.mamba_vlm.mamba import MambaMixer, MixerState
from raymed.systems.mamba_vlm.settings import LANGUAGE_FILES, LanguageSettings
from raymed.systems.mamba_vlm.tiny_language_model import REPORTS, byte_tokenizer, tiny_config

LORA_TARGETS = ("in_proj", "x_proj", "out_proj")


class TiedEmbedding(nn.Embedding):
    """Token ids to vectors, and vectors to scores of all tokens by the same weights."""

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 ids [...] -> [..., width]; vectors [..., width] -> scores [..., tokens]."""
        return F.linear(tokens, self.weight) if tokens.is_floating_point() else super().forward(tokens)


class MambaBlock(nn.Module):
    """h + mixer(norm(h)), the sum in float32."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = MambaMixer(
            config.hidden_size,
            config.state_size,
            config.conv_kernel,
            config.expand,
            int(config.time_step_rank),
            config.use_bias,
            config.use_conv_bias,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.float() + self.mixer(self._normed(hidden))

    def prefill(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, MixerState]:
        mixed, state = self.mixer.prefill(self._normed(hidden), mask)
        return hidden.float() + mixed, state

    def step(self, hidden: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        mixed, state = self.mixer.step(self._normed(hidden), state)
        return hidden.float() + mixed, state

    def _normed(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden.to(self.norm.weight.dtype))


class MambaBackbone(nn.Module):
    """Embeddings, blocks and the last norm, named as in transformers."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.embeddings = TiedEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MambaBlock(config) for _ in range(config.num_hidden_layers))
        self.norm_f = nn.RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)


class MambaLanguageModel(nn.Module):
    """From embeddings to scores of the next token.

    Attributes:
        vocabulary: how many tokens the tokenizer has; what the embedding has beyond is never a score.
    """

    def __init__(self, config: MambaConfig, vocabulary: int, gradient_checkpointing: bool = True) -> None:
        super().__init__()
        self.backbone = MambaBackbone(config)
        self.vocabulary = vocabulary
        self.gradient_checkpointing = gradient_checkpointing
        self.frozen = False

    @property
    def width(self) -> int:
        return self.backbone.embeddings.embedding_dim

    def freeze(self) -> None:
        """Keep all weights as they are, and stay in evaluation mode."""
        self.requires_grad_(False)
        self.frozen = True
        self.eval()

    def train(self, mode: bool = True) -> MambaLanguageModel:
        return super().train(mode and not self.frozen)

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [...] -> [..., width]."""
        return self.backbone.embeddings(ids)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Hidden states [batch, length, width], the last norm done; padding follows each row, so no row sees it."""
        hidden = embeddings
        for layer in self.backbone.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, use_reentrant=False)
            else:
                hidden = layer(hidden)
        return self._normed(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the tokenizer's tokens, float32 [..., vocabulary], of hidden states [..., width]."""
        return self.backbone.embeddings(hidden)[..., : self.vocabulary].float()

    def prefill(self, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, list[MixerState]]:
        """Each row's last hidden state [batch, width], and its states, after its own tokens.

        Args:
            embeddings: [batch, length, width].
            mask: bool [batch, length], False on padding, which follows.
        """
        hidden, states = embeddings, []
        for layer in self.backbone.layers:
            hidden, state = layer.prefill(hidden, mask)  # type: ignore[operator]
            states.append(state)
        last = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        return self._normed(last), states

    def step(self, embeddings: Tensor, states: list[MixerState]) -> tuple[Tensor, list[MixerState]]:
        """The same after one token more of each row, [batch, width]; costs the same at any length."""
        hidden, following = embeddings, []
        for layer, state in zip(self.backbone.layers, states, strict=True):
            hidden, state = layer.step(hidden, state)  # type: ignore[operator]
            following.append(state)
        return self._normed(hidden), following

    def _normed(self, hidden: Tensor) -> Tensor:
        return self.backbone.norm_f(hidden.to(self.backbone.norm_f.weight.dtype))


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model before its weights are read.

    Attributes:
        settings: as given.
        config: its configuration.
        tokenizer: the one it was trained with.
        folder: where its weights lie; None for random ones.
    """

    settings: LanguageSettings
    config: MambaConfig
    tokenizer: PreTrainedTokenizerBase
    folder: Path | None

    @classmethod
    def find(cls, settings: LanguageSettings) -> LanguageModel:
        """The model that the settings name; without a path, the tiny one.

        Raises:
            UserError: there is none, it is of another kind, or tokenizer and model do not belong together.
        """
        path = settings.located().path
        if path is None:
            tokenizer = byte_tokenizer(REPORTS)
            return cls(settings, tiny_config(len(tokenizer)), tokenizer, None)
        folder = Path(path)
        config = _read_config(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the loaders below it raise many kinds
            raise UserError(f"{folder} holds no usable tokenizer: {error}. It needs {LANGUAGE_FILES}") from error
        if len(tokenizer) > config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {len(tokenizer)} tokens and the embedding {config.vocab_size}: they do not "
                "belong together"
            )
        return cls(settings, config, tokenizer, folder)

    @property
    def end(self) -> int:
        """Id of the token that ends a text."""
        token = self.tokenizer.eos_token_id
        return 0 if token is None else int(token)

    def build(self) -> MambaLanguageModel:
        """The network with its weights, frozen or with adapters as the settings say.

        Raises:
            UserError: keys are missing, unknown or of another shape; 8 bits cannot be had.
        """
        module = MambaLanguageModel(self.config, len(self.tokenizer), self.settings.gradient_checkpointing)
        if self.folder is None:
            nn.init.normal_(module.backbone.embeddings.weight, std=self.config.initializer_range)
        else:
            _load(module, self.folder)
        if self.settings.frozen:
            module.freeze()
        if self.settings.lora:
            add_lora(module.backbone.layers, self.settings.lora, LORA_TARGETS)
        if self.settings.int8:
            from raymed.systems.mamba_vlm.quantisation import to_int8

            to_int8(module)
        return module


def embedding_table(model: LanguageModel) -> Tensor:
    """The model's embeddings [tokens, width]; of the tiny one random ones, drawn from torch's generator."""
    if model.folder is None:
        return torch.randn(model.config.vocab_size, model.config.hidden_size) * model.config.initializer_range
    return _state(model.folder)["backbone.embeddings.weight"]


def _read_config(folder: Path) -> MambaConfig:
    try:
        content: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a model folder: its config.json cannot be read ({error}). It needs {LANGUAGE_FILES}"
        ) from error
    kind = content.get("model_type")
    if kind is None and "d_model" in content and "n_layer" in content:  # the -hf folders keep these keys beside their own
        raise UserError(
            f"{folder} has the original layout of mamba_ssm: take the folder of the same model whose name ends in -hf "
            f"({folder.name.removesuffix('-hf')}-hf)"
        )
    if kind != "mamba":
        raise UserError(f"{folder}: a model of type {kind!r} is not a Mamba of transformers' layout")
    config = MambaConfig.from_dict(content)
    if not config.tie_word_embeddings:
        raise UserError(f"{folder}: its output embeddings are not those of the input, as the published ones' are")
    return config


def _load(module: MambaLanguageModel, folder: Path) -> None:
    state = _state(folder)
    expected = module.state_dict()
    refuse_keys(
        folder,
        {
            "missing": expected.keys() - state.keys(),
            "unexpected": state.keys() - expected.keys(),
            "of another shape": [key for key in state.keys() & expected.keys() if state[key].shape != expected[key].shape],
        },
    )
    module.load_state_dict(state)


def _state(folder: Path) -> dict[str, Tensor]:
    """A folder's weights by the names of `MambaLanguageModel`."""
    return {
        key.replace("backbone.embedding.", "backbone.embeddings."): tensor.float()
        for key, tensor in read_state(folder).items()
        if key != "lm_head.weight"  # the embedding's once more
    }
