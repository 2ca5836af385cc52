"""The ViT of a trained model, taken out: read from any layout, resized on request, written for use without raymed.

A tower is taken out of its file as tensors by name; the rest of the model is never built. Every tensor of the file either
belongs to the ViT, or to a known other part and is listed as left out, or is an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, InternVLVisionConfig, PreTrainedConfig, PreTrainedModel

from raymed.errors import UserError
from raymed.models.backbone_weights import POSITIONS, read_weights, refuse_keys, resample_positions
from raymed.models.backbones import IMAGENET_MEAN, IMAGENET_STD, TOKEN_MODELS, check_size, normalisation, patch_size
from raymed.models.backbones import read_config as read_backbone_config
from raymed.models.internvl_weights import (
    CONFIG,
    REMOTE_VISION,
    WEIGHTS,
    native_state,
    native_vision_config,
    read_state,
    remote_code_state,
    remote_vision_config,
    side,
)
from raymed.models.settings import Layout
from raymed.storage.seal import check_seal, seal

log = logging.getLogger("raymed")

EXTRACTED = "extracted.json"  # where the ViT came from, beside its weights
WEIGHT_FILES = (".safetensors", ".bin", ".pth", ".pt")
DECIDING = ("num_attention_heads", "layer_norm_eps", "hidden_act", "norm_type", "use_qk_norm")  # beside the weights
PATCHES = "embeddings.patch_embeddings.projection.weight"
_NATIVE, _REMOTE = "model.vision_tower.", "vision_model."
_TOWERS = (_NATIVE, "vision_tower.", _REMOTE, "backbone.", "image_encoder.")  # what the ViT's keys begin with
_OTHERS = {  # the other parts of the models that hold a ViT, and what their keys begin with
    "projector": ("model.multi_modal_projector.", "multi_modal_projector.", "mlp1."),
    "language model": ("model.language_model.", "language_model.", "lm_head."),
    "text tower": ("text_encoder.", "text_projection."),
    "head": ("head.", "classifier.", "pooler.", "image_projection.", "logit_scale"),
}


@dataclass(frozen=True, eq=False)
class VisionTower:
    """A ViT's weights and configuration. Get it with `VisionTower.read`.

    Attributes:
        config: transformers' configuration, an InternViT's or a plain ViT's.
        state: tensors by their native names, as stored.
        left_out: keys of the file that belong to other parts of the model, by part.
        source: where it was read from.
    """

    config: PreTrainedConfig
    state: dict[str, Tensor]
    left_out: dict[str, tuple[str, ...]]
    source: str

    @classmethod
    def read(cls, path: Path, source: str | None = None) -> VisionTower:
        """The ViT in a model folder of any known layout, or in a file of weights.

        A file without a config.json beside it is taken for the InternViT-300M, which every tensor must then confirm.

        Args:
            source: what to call it, where the path is a copy.

        Raises:
            UserError: nothing readable there, damaged files, no ViT in it, or a key that is missing, unknown or of another
                shape.
        """
        config: PreTrainedConfig | None = None
        if path.is_dir():
            check_seal(path)
            config, state = _folder_config(path), read_state(path)
        elif path.suffix in WEIGHT_FILES and path.is_file():
            state = read_weights(path)
            if (path.parent / CONFIG).is_file():
                config = _folder_config(path.parent)
        else:
            raise UserError(f"{path}: no such model. Give a folder with {CONFIG}, or a file {' or '.join(WEIGHT_FILES)}")
        taken, left_out = _divide(state)
        if config is None:
            log.info("%s has no %s beside it: taken for the InternViT-300M", path, CONFIG)
            config = InternVLVisionConfig(attention_bias=True, image_size=_picture_size(taken))
        _refuse(path, config, taken)
        return cls(config, taken, left_out, source or str(path.resolve()))

    @property
    def size(self) -> int:
        """Side of the square pictures that its positions are made for, in pixels."""
        config: Any = self.config
        return side(config.image_size)

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        return patch_size(self.config)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        config: Any = self.config
        return int(config.num_hidden_layers)

    @cached_property
    def digest(self) -> str:
        """Names what it computes: BLAKE2b of the settings that decide it, and of the weights' names, types and values; 16
        hexadecimal digits."""
        decided = [getattr(self.config, name, None) for name in DECIDING]
        digest = hashlib.blake2b(repr((decided, normalisation(self.config))).encode(), digest_size=8)
        for key in sorted(self.state):
            tensor = self.state[key].contiguous()
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def resized(self, size: int, patch: int | None = None) -> VisionTower:
        """The same ViT for pictures of another size, or cut into patches of another size.

        Positions are resampled bicubically to the new grid. Patch kernels are resized by the pseudo-inverse of a bicubic
        resize, so that a patch and its enlargement give the same embedding (Beyer et al. 2023, FlexiViT, eq. 5).

        Raises:
            UserError: the size is no multiple of the patches.
        """
        patch = self.patch if patch is None else patch
        if (size, patch) == (self.size, self.patch):
            return self
        config = type(self.config).from_dict(self.config.to_dict() | {"image_size": size, "patch_size": patch})
        check_size(config, size)
        state = dict(self.state)
        places = (size // patch) ** 2
        if state[POSITIONS].shape[1] != places + 1:
            positions = state[POSITIONS]
            state[POSITIONS] = resample_positions(positions.float(), places).to(positions.dtype)
        if patch != self.patch:
            state[PATCHES] = _resize_kernels(state[PATCHES], patch)
        return VisionTower(config, state, self.left_out, self.source)

    def build(self, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PreTrainedModel:
        """The network, ready to be asked, on the CPU."""
        network = _skeleton(self.config)
        network.load_state_dict({key: tensor.to(dtype) for key, tensor in self.state.items()}, assign=True)
        network.config._attn_implementation = attention
        return network.eval()

    def usual_layout(self, out: Path) -> Layout:
        """InternVL's own names for a single file of an InternViT, as the code that loads such files by name expects them;
        transformers' otherwise."""
        return "internvl" if out.suffix in WEIGHT_FILES and isinstance(self.config, InternVLVisionConfig) else "native"

    def write(self, out: Path, layout: Layout) -> None:
        """Write weights and configuration, and where they came from, to a folder; or the weights alone to a file.

        Args:
            out: a folder, or a file that ends in .safetensors, .pth, .pt or .bin.
            layout: `native` is what transformers' AutoModel loads; `internvl` has the original names, as InternVL's and
                ViTP's own code reads them.

        Raises:
            UserError: the layout is not one of this ViT, or nothing can be written there.
        """
        native = {key: tensor.contiguous() for key, tensor in self.state.items()}
        if layout == "native":
            dtype = str(self.state[POSITIONS].dtype).removeprefix("torch.")
            content = self.config.to_dict() | {"architectures": [type(_skeleton(self.config)).__name__], "dtype": dtype}
            state = native
        elif isinstance(self.config, InternVLVisionConfig):
            content = remote_vision_config(self.config)
            renamed = remote_code_state({_NATIVE + key: tensor for key, tensor in native.items()})
            state = {key.removeprefix(_REMOTE): tensor.contiguous() for key, tensor in renamed.items()}
        else:
            raise UserError(f"the layout internvl is for InternViTs; {self.source} holds a {self.config.model_type}")
        folder = out.parent if out.suffix in WEIGHT_FILES else out
        taken = (folder / CONFIG).exists() and not (folder / EXTRACTED).exists()
        if (taken and (folder == out or out.exists())) or out.resolve() == Path(self.source).expanduser().resolve():
            raise UserError(f"{out} holds another model already: choose another --out")
        mean, std = normalisation(self.config)
        if out.suffix in WEIGHT_FILES and (mean, std) != (IMAGENET_MEAN, IMAGENET_STD):
            raise UserError(
                f"weights alone cannot say that pictures are normalised with the mean {mean} and the deviation {std}: "
                "give a folder as --out, whose config.json does"
            )
        try:
            if out.suffix in WEIGHT_FILES:
                out.parent.mkdir(parents=True, exist_ok=True)
                _save(state, out)
                return
            out.mkdir(parents=True, exist_ok=True)
            _save(state, out / WEIGHTS)
            (out / CONFIG).write_text(json.dumps(content, indent=2), "utf-8")
            (out / EXTRACTED).write_text(json.dumps(self.origin(), indent=1), "utf-8")
            seal(out)
        except OSError as error:
            raise UserError(f"cannot write {out}: {error}. Free space, or choose another --out") from error

    def origin(self) -> dict[str, Any]:
        """What was taken, from where, and what was left out."""
        return {
            "source": self.source,
            "digest": self.digest,
            "size": self.size,
            "patch": self.patch,
            "tensors": len(self.state),
            "left_out": {part: list(keys) for part, keys in self.left_out.items()},
        }


def _folder_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the ViT in a model folder."""
    where = next((each for each in (folder / CONFIG, folder / "image" / CONFIG) if each.is_file()), folder / CONFIG)
    try:
        content = json.loads(where.read_text("utf-8"))
        kind = content["model_type"]
        if kind == "internvl_chat":
            return native_vision_config(content["vision_config"], where)
        if kind == REMOTE_VISION:
            return native_vision_config(content, where)
        if kind == "internvl":
            return InternVLVisionConfig.from_dict(content["vision_config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a model folder: {where} cannot be used ({error!r})") from error
    if kind not in TOKEN_MODELS:
        raise UserError(f"{where}: a model of type {kind!r} has no ViT that can be taken out")
    return read_backbone_config(where.parent)


def _divide(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The ViT's tensors by their native names, and the keys of the known other parts; an unknown key keeps its name."""
    taken: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = {}
    for key, tensor in state.items():
        part = next((part for part, beginnings in _OTHERS.items() if key.startswith(beginnings)), None)
        if part is None:
            beginning = next((each for each in _TOWERS if key.startswith(each)), "")
            taken[key.removeprefix(beginning)] = tensor
        else:
            left_out.setdefault(part, []).append(key)
    if "embeddings.class_embedding" in taken:
        renamed = native_state({_REMOTE + key: tensor for key, tensor in taken.items()})
        taken = {key.removeprefix(_REMOTE).removeprefix(_NATIVE): tensor for key, tensor in renamed.items()}
    return taken, {part: tuple(sorted(keys)) for part, keys in left_out.items()}


def _picture_size(state: Mapping[str, Tensor]) -> int:
    """Side of the pictures that an InternViT-300M was made for, by its positions."""
    positions = state.get(POSITIONS)
    return 448 if positions is None or positions.ndim != 3 else 14 * round((positions.shape[1] - 1) ** 0.5)


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The network without weights."""
    with torch.device("meta"):
        network: Any = AutoModel.from_config(config)
    if config.model_type == "vit":
        network.pooler = None
    return network


def _refuse(path: Path, config: PreTrainedConfig, state: Mapping[str, Tensor]) -> None:
    expected = {key: tensor.shape for key, tensor in _skeleton(config).state_dict().items()}
    refuse_keys(
        path,
        {
            "missing": expected.keys() - state.keys(),
            "unexpected": state.keys() - expected.keys(),
            "of another shape": [key for key in state.keys() & expected.keys() if state[key].shape != expected[key]],
        },
    )


def _resize_kernels(kernels: Tensor, patch: int) -> Tensor:
    """Patch kernels [width, channels, side, side] for patches of another side, [width, channels, patch, patch]."""
    old = kernels.shape[-1]
    pixels = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    resize = F.interpolate(pixels, (patch, patch), mode="bicubic", align_corners=False).flatten(1).T  # new x old pixels
    solved = torch.from_numpy(np.linalg.pinv(resize.T.numpy()))  # new x old
    return (kernels.double().flatten(2) @ solved.T).to(kernels.dtype).unflatten(2, (patch, patch))


def _save(state: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(state, file)
