"""What a checkpoint folder of BAGEL or UniMedVL holds: which files, and the sizes of the network in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from raymed.errors import UserError
from raymed.models.internvl_weights import shard_names
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.settings import CHECKPOINT_FILES, AutoencoderSizes, LanguageSizes, NetworkSizes, VisionSizes

LANGUAGE_CONFIG, VISION_CONFIG, AUTOENCODER_CONFIG = "llm_config.json", "vit_config.json", "ae_config.json"
AUTOENCODERS = ("ae.safetensors", "vae_model.safetensors")  # of a released folder, of a training step's
LATENT_TABLE, VISION_TABLE = "latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"  # fixed, and stored all the same


def sizes_of(folder: Path, weights: str = "ema") -> NetworkSizes:
    """The sizes of the network in a checkpoint folder, from its configurations and the shapes of its tensors.

    Raises:
        UserError: a file is missing or damaged.
    """
    stored = {key: shape for file in weight_files(folder, weights) for key, shape in stored_shapes(file).items()}
    language, vision = _read_config(folder / LANGUAGE_CONFIG), _read_config(folder / VISION_CONFIG)
    try:
        rope = language.get("rope_parameters") or language
        sizes = NetworkSizes(
            language=LanguageSizes(
                vocabulary=language["vocab_size"],
                hidden=language["hidden_size"],
                layers=language["num_hidden_layers"],
                heads=language["num_attention_heads"],
                key_value_heads=language["num_key_value_heads"],
                intermediate=language["intermediate_size"],
                rope_theta=rope.get("rope_theta", 1e6),
                norm_eps=language.get("rms_norm_eps", 1e-6),
            ),
            vision=VisionSizes(
                hidden=vision["hidden_size"],
                layers=_vision_layers(stored),  # configurations say 27 or 26 for the same 26
                heads=vision["num_attention_heads"],
                intermediate=vision["intermediate_size"],
                patch=vision["patch_size"],
                side=vision["image_size"] // vision["patch_size"],
                norm_eps=vision.get("layer_norm_eps", 1e-6),
            ),
            autoencoder=autoencoder_sizes(Folder.at(folder)),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: {LANGUAGE_CONFIG} or {VISION_CONFIG} lacks {error}") from error
    table = stored.get(LATENT_TABLE)
    return sizes if table is None else replace(sizes, latent_side=round(table[0] ** 0.5))


def weight_files(folder: Path, weights: str) -> list[Path]:
    """The files of a folder's weights: one, or the shards that an index names; those in bf16 first.

    Raises:
        UserError: there are none.
    """
    for stem in (f"{weights}_bf16", weights):
        if (file := folder / f"{stem}.safetensors").is_file():
            return [file]
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return [folder / name for name in shard_names(index)]
    other = "model" if weights == "ema" else "ema"
    hint = f"; it has {other}.safetensors: give weights={other}" if (folder / f"{other}.safetensors").is_file() else ""
    raise UserError(f"{folder} holds no {weights}.safetensors{hint}. A checkpoint has {CHECKPOINT_FILES}")


def write_configs(sizes: NetworkSizes, end: int, folder: Path) -> None:
    """Write the configurations that `sizes_of` reads.

    Args:
        end: token id that ends an answer.
    """
    for name, content in (
        (LANGUAGE_CONFIG, _language_config(sizes.language, end)),
        (VISION_CONFIG, _vision_config(sizes.vision)),
        (AUTOENCODER_CONFIG, asdict(sizes.autoencoder)),
    ):
        (folder / name).write_text(json.dumps(content, indent=2), "utf-8")


def autoencoder_file(folder: Folder) -> str:
    """Name of the file with the image autoencoder.

    Raises:
        UserError: there is none.
    """
    for name in AUTOENCODERS:
        if folder.exists(name):
            return name
    raise UserError(f"{folder.uri} has no image autoencoder: put {AUTOENCODERS[0]} there, or {AUTOENCODERS[1]}")


def autoencoder_sizes(folder: Folder) -> AutoencoderSizes:
    """Sizes of the image autoencoder, from the configuration that `write_configs` writes; a released folder has none, and
    FLUX's.

    Raises:
        UserError: the configuration is damaged.
    """
    if not folder.exists(AUTOENCODER_CONFIG):
        return AutoencoderSizes()
    try:
        content = json.loads(folder.read(AUTOENCODER_CONFIG))
        return AutoencoderSizes(**content | {"multipliers": tuple(content["multipliers"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.uri}/{AUTOENCODER_CONFIG} cannot be used: {error}") from error


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The tensors of a file, each read when it is asked for.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {file}: {error}") from error


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors, by their names.

    Raises:
        UserError: it cannot be read.
    """
    with opened(file) as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in list(tensors.keys())}


def _language_config(sizes: LanguageSizes, end: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "hidden_act": "silu",
        "rms_norm_eps": sizes.norm_eps,
        "rope_theta": sizes.rope_theta,
        "tie_word_embeddings": False,
        "qk_norm": True,
        "layer_module": "Qwen2MoTDecoderLayer",
        "eos_token_id": end,
    }


def _vision_config(sizes: VisionSizes) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers + 1,  # released loaders take one off
        "num_attention_heads": sizes.heads,
        "image_size": sizes.side * sizes.patch,
        "patch_size": sizes.patch,
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": sizes.norm_eps,
    }


def _vision_layers(stored: Mapping[str, Any]) -> int:
    numbers = [int(match[1]) for key in stored if (match := re.match(r"vit_model\..*\.layers\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}). A checkpoint has {CHECKPOINT_FILES}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a configuration: it holds no object")
    return content
