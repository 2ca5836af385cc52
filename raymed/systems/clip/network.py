"""A picture and texts in one space: the class of a picture is the one whose text is nearest (CLIP, arXiv:2103.00020).

The class texts do not depend on the picture, so they are encoded once per step and not once per picture; once at all where
the text encoder is frozen; and once for all pictures when predicting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from raymed.errors import UserError
from raymed.job.mistakes import did_you_mean
from raymed.models import adapt
from raymed.models.backbone_weights import load_weights, refuse_keys
from raymed.models.backbones import (
    PRESETS,
    check_size,
    feature_norm,
    feature_width,
    input_norm,
    make_backbone,
    normalisation,
    pooled_features,
    read_config,
)
from raymed.models.model_folders import WEIGHT_FILES, find_model
from raymed.models.settings import LITE, ClipModelSettings
from raymed.models.text_encoder import TextModel

WEIGHTS = "model.safetensors"
IMAGE, TEXT = "image_encoder", "text_encoder"  # folders of an exported model
INTERNVIT = "internvit"
MAX_SCALE = 100.0  # as published: beyond it training is not stable

_SHAPE = (  # settings that tell backbones of one kind apart
    *("hidden_sizes", "depths", "layer_type", "hidden_size", "num_hidden_layers"),
    *("width_coefficient", "depth_coefficient"),
)


class ClipClassifier(nn.Module):
    """Two towers, and the class texts that pictures are compared with.

    Attributes:
        image_encoder: an image backbone.
        text_encoder: a `TextEncoder`.
        logit_scale: the logarithm of one over the temperature.
        tokens, mask: the class texts, int64 [prompts, length].
        owner: the class of each prompt, int64 [prompts].
    """

    tokens: Tensor
    mask: Tensor
    owner: Tensor

    def __init__(
        self,
        image: PreTrainedConfig,
        text: TextModel,
        names: Sequence[str],
        texts: Sequence[Sequence[str]],
        size: int,
        embed_dim: int,
        temperature: float,
    ) -> None:
        """
        Args:
            image: configuration of the image backbone; its weights are drawn from torch's generator.
            text: the text encoder; its weights are read, or drawn where it has no folder.
            names: the classes' names.
            texts: the classes' prompts.
            size: side of the square pictures, in pixels.
            embed_dim: width of the common space.
            temperature: the starting value.

        Raises:
            UserError: sizes, texts or weights do not fit.
        """
        super().__init__()
        self.normalise = input_norm(image)
        self.image_encoder = make_backbone(image, size)
        self.image_projection = nn.Sequential(feature_norm(image), nn.Linear(feature_width(image), embed_dim))
        self.tokenizer = text.tokenizer
        self.text_encoder = text.build()
        self.text_projection = nn.Linear(self.text_encoder.width, embed_dim)
        self.logit_scale = nn.Parameter(torch.full((1,), -math.log(temperature)))  # DeepSpeed wants a dimension
        tokens, mask = text.tokenize(names, texts)
        owner = torch.tensor([number for number, prompts in enumerate(texts) for _ in prompts])
        for name, value in (("tokens", tokens), ("mask", mask), ("owner", owner)):
            self.register_buffer(name, value, persistent=False)  # they belong to the question, not to the weights
        self._padded = not bool(mask.all())
        self.classes = len(names)
        self._encoded: Tensor | None = None  # by a frozen text encoder
        self._features: Tensor | None = None  # while evaluating
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, pixels: Tensor | None = None, features: Tensor | None = None) -> dict[str, Tensor]:
        """Compare pictures with the class texts.

        Args:
            pixels: uint8 [rows, 1 or 3, size, size], or
            features: what `image_features` made of them.

        Returns:
            `logits` [rows, classes] and `prompt_logits` [rows, prompts]: cosines times the scale, float32; several prompts
            of a class stand for it together, by the direction of their mean. `scale` []: one over the temperature.
        """
        if features is None:
            assert pixels is not None
            features = self.image_features(pixels)
        pictures = self.picture_features(features)
        prompts = self.prompt_features()
        with torch.autocast(prompts.device.type, enabled=False):  # 8 bits are too few for a cosine that is scaled up
            classes = torch.zeros(self.classes, prompts.shape[1], device=prompts.device)
            classes = F.normalize(classes.index_add(0, self.owner, prompts), dim=1)
            scale = _Bounded.apply(self.logit_scale.float()).exp()[0]
            return {
                "logits": scale * pictures @ classes.T,
                "prompt_logits": scale * pictures @ prompts.T,
                "scale": scale,
            }

    def image_features(self, pixels: Tensor) -> Tensor:
        """What the image encoder makes of uint8 pictures [rows, 1 or 3, size, size]: [rows, width]."""
        return pooled_features(self.image_encoder, self.normalise(pixels, self._dtype), class_token=True)

    def picture_features(self, features: Tensor) -> Tensor:
        """Unit vectors, float32 [rows, embed_dim], of what `image_features` made of pictures."""
        return F.normalize(self.image_projection(features.to(self._dtype)).float(), dim=1)

    @property
    def _dtype(self) -> torch.dtype:
        projection: Any = self.image_projection[-1]
        return projection.weight.dtype

    def prompt_features(self) -> Tensor:
        """Unit vectors, float32 [prompts, embed_dim], of the class texts."""
        if self._features is not None:
            return self._features
        features = F.normalize(self.text_projection(self._encode_texts()).float(), dim=1)
        if not self.training and not torch.is_grad_enabled():
            self._features = features
        return features

    def _encode_texts(self) -> Tensor:
        mask = self.mask if self._padded else None
        if any(parameter.requires_grad for parameter in self.text_encoder.parameters()):
            return self.text_encoder(self.tokens, mask)
        if self._encoded is None:
            with torch.no_grad(), torch.autocast(self.tokens.device.type, enabled=False):
                self._encoded = self.text_encoder(self.tokens, mask)
        return self._encoded

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClipClassifier:
        _forget(self)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> ClipClassifier:
        super().train(mode)
        self._features = None  # weights change while training
        if mode:
            adapt.rest_frozen(self)
        return self

    def export(self, folder: Path) -> None:
        """Write the weights, both encoders' configurations and the tokenizer."""
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        self.image_encoder.config.save_pretrained(folder / IMAGE)
        self.text_encoder.network.config.save_pretrained(folder / TEXT)
        self.tokenizer.save_pretrained(folder / TEXT)


def _forget(module: ClipClassifier, *_: Any) -> None:
    """Drop what was encoded with other weights."""
    module._encoded = module._features = None


class _Bounded(torch.autograd.Function):
    """The smaller of a number and log(100). A plain clamp has no gradient beyond its bound, so that a step that went too far
    could never be undone; here the gradient that leads back passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(max=math.log(MAX_SCALE))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x <= math.log(MAX_SCALE)) | (gradient > 0), gradient, torch.zeros_like(gradient))


def check(settings: ClipModelSettings, names: Sequence[str], texts: Sequence[Sequence[str]], size: int) -> None:
    """Refuse settings, texts and picture sizes that the towers cannot take, without loading their weights.

    Raises:
        UserError: says which.
    """
    check_size(_image_config(settings, size), size)
    _text_model(settings, texts).tokenize(names, texts)


def build(settings: ClipModelSettings, names: Sequence[str], texts: Sequence[Sequence[str]], size: int) -> ClipClassifier:
    """The classifier with its starting weights, adapted as the settings say.

    Raises:
        UserError: as `check`, and where weights do not fit.
    """
    config, text = _image_config(settings, size), _text_model(settings, texts)
    module = ClipClassifier(config, text, names, texts, size, settings.embed_dim, settings.temperature)
    if settings.image_weights is not None:
        load_weights(module.image_encoder, _image_path(settings.image_weights))
    if settings.freeze_image:
        adapt.freeze(module.image_encoder)
    if settings.freeze_text:
        adapt.freeze(module.text_encoder)
    return module


def load(folder: Path, names: Sequence[str], texts: Sequence[Sequence[str]], size: int) -> ClipClassifier:
    """The classifier that `ClipClassifier.export` wrote, asked about these texts.

    Raises:
        UserError: the folder is not complete, its weights do not fit, or its tower cannot take the texts.
    """
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot load the weights {folder / WEIGHTS}: {error}") from error
    text = TextModel.open(folder / TEXT)
    unread = TextModel(text.config, text.tokenizer, None)  # its weights are among `state`
    width = state["text_projection.weight"].shape[0] if "text_projection.weight" in state else 1
    module = ClipClassifier(read_config(folder / IMAGE), unread, names, texts, size, embed_dim=width, temperature=1.0)
    try:
        report = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"cannot load the weights {folder / WEIGHTS}: {error}") from error
    refuse_keys(folder, {"missing": report.missing_keys, "unexpected": report.unexpected_keys})
    return module


def _text_model(settings: ClipModelSettings, texts: Sequence[Sequence[str]]) -> TextModel:
    return TextModel.find(settings.text_encoder, [prompt for prompts in texts for prompt in prompts])


def _image_path(weights: str) -> Path:
    return find_model(weights, WEIGHT_FILES)


def image_normalisation(settings: ClipModelSettings, size: int) -> list[list[float]]:
    """Mean and deviation that the image encoder wants its pictures normalised with."""
    return [list(each) for each in normalisation(_image_config(settings, size))]


def _image_config(settings: ClipModelSettings, size: int) -> PreTrainedConfig:
    name = settings.image_encoder
    known = [*(each for each in PRESETS if each != LITE), INTERNVIT]
    if name not in known:
        raise UserError(f"model.image_encoder {name!r} is unknown; there are {', '.join(known)}{did_you_mean(name, known)}")
    path = None if settings.image_weights is None else _image_path(settings.image_weights)
    if name == INTERNVIT:
        if path is None or not path.is_dir():
            raise UserError("model.image_encoder internvit needs its folder: give it as model.image_weights")
        return _checked_kind(read_config(path), "internvl_vision", path)
    preset = PRESETS[name](size)
    if path is None or not path.is_dir():
        return preset
    found = _checked_kind(read_config(path), preset.model_type, path)
    pairs = {key: (_plain(getattr(found, key, None)), _plain(getattr(preset, key, None))) for key in _SHAPE}
    other = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if other:
        differences = ", ".join(f"{key} {has} in place of {wants}" for key, (has, wants) in other.items())
        raise UserError(f"{path} is not a {name}: it has {differences}. Give model.image_encoder and its own weights")
    return found


def _plain(value: Any) -> Any:
    """As it would come back from JSON."""
    return list(value) if isinstance(value, tuple) else value


def _checked_kind(config: PreTrainedConfig, kind: str, path: Path) -> PreTrainedConfig:
    if config.model_type != kind:
        raise UserError(f"{path} holds a model of type {config.model_type!r}, not {kind!r}: give weights of that kind")
    return config
