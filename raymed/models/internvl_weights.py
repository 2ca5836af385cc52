"""InternVL checkpoints, in and out: transformers' native layout, and the original remote-code layout by its key map.

No code from a checkpoint is executed and no pickle is trusted: the original layout is read as plain tensors and renamed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config
from transformers.utils import logging

from raymed.errors import UserError
from raymed.models.backbone_weights import refuse_keys
from raymed.models.model_folders import IMAGE_PROCESSOR
from raymed.storage.seal import check_archive

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
MOST_TILES = 12  # that InternVL cuts a picture into where it is asked
REMOTE_VISION = "intern_vit_6b"  # model_type of every ViT in the original layout, also of the 300M one

# remote-code name -> native name; the fused qkv has a rule of its own
_NAMES = (
    ("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.patch_embedding.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    ("vision_model.embeddings.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    ("vision_model.encoder.layers.", "model.vision_tower.encoder.layer."),
    ("mlp1.0.", "model.multi_modal_projector.layer_norm."),
    ("mlp1.1.", "model.multi_modal_projector.linear_1."),
    ("mlp1.3.", "model.multi_modal_projector.linear_2."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
)
_BLOCK_NAMES = (
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.q_norm.", ".attention.q_norm."),
    (".attn.k_norm.", ".attention.k_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
)
_FUSED = ".attn.qkv."
_SPLIT = (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")
_BLOCK = "model.vision_tower.encoder.layer."

_VISION_KEYS = {  # remote-code name -> native name
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_hidden_layers": "num_hidden_layers",
    "image_size": "image_size",
    "patch_size": "patch_size",
}
_VISION_OPTIONS = {  # remote-code name -> native name and the original's default, which differs from the native one
    "qkv_bias": ("attention_bias", False),
    "qk_normalization": ("use_qk_norm", True),
    "norm_type": ("norm_type", "rms_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "hidden_act": ("hidden_act", "gelu"),
}
_REMOTE_CODE = {  # what transformers runs for a folder that holds InternVL's own .py files
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}
_OWN_OPTIONS = ("image_mean", "image_std")  # not the original's: how pictures are normalised, where it is not as ImageNet's


def native_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a remote-code state dict to native names; a key that the map does not know keeps its name."""
    native: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _renamed(key, _NAMES)
        if name.startswith(_BLOCK):
            if name.endswith((_FUSED + "weight", _FUSED + "bias")) and len(tensor) % 3 == 0:
                native |= {name.replace(_FUSED, part): third for part, third in zip(_SPLIT, tensor.chunk(3), strict=True)}
                continue
            name = _renamed_inside(name, _BLOCK_NAMES)
        native[name] = tensor
    return native


def remote_code_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a native state dict to remote-code names: the reverse of `native_state`, bit for bit."""
    remote: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if _SPLIT[0] in key and key.startswith(_BLOCK):
            tensor = torch.cat([state[key.replace(_SPLIT[0], part)] for part in _SPLIT])
            key = key.replace(_SPLIT[0], _FUSED)
        elif key.startswith(_BLOCK):
            if any(part in key for part in _SPLIT[1:]):
                continue
            key = _renamed_inside(key, [(native, name) for name, native in _BLOCK_NAMES])
        remote[_renamed(key, [(native, name) for name, native in _NAMES])] = tensor
    return remote


def _renamed(key: str, names: Any) -> str:
    for old, new in names:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _renamed_inside(key: str, names: Any) -> str:
    for old, new in names:
        if old in key:
            return key.replace(old, new)
    return key


def read_config(folder: Path) -> InternVLConfig:
    """The native configuration of a model folder in either layout, with an output layer of its own.

    Raises:
        UserError: there is no readable config.json, or the model is of a kind that is not supported.
    """
    try:
        content = json.loads((folder / CONFIG).read_text("utf-8"))
        kind = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a model folder: its {CONFIG} cannot be read ({error!r})") from error
    try:
        if kind == "internvl_chat":
            config = _native_config(content, folder / CONFIG)
        elif kind == "internvl":
            config = InternVLConfig.from_dict(content)
        else:
            raise UserError(f"{folder / CONFIG}: model_type {kind!r} is not InternVL")
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(f"{folder / CONFIG}: not a valid configuration: {error}") from error
    text: Any = config.text_config
    if text.model_type != "qwen2":
        raise UserError(f"{folder / CONFIG}: the language model {text.model_type!r} is not supported, only Qwen2")
    return untied(config)


def untied(config: InternVLConfig) -> InternVLConfig:
    """`config` with separate input and output embeddings, as in every InternVL 2.5 and 3; the class's default ties them."""
    text: Any = config.text_config
    config.tie_word_embeddings = text.tie_word_embeddings = False
    return config


def _native_config(content: dict[str, Any], where: Path) -> InternVLConfig:
    language, vision = dict(content.get("llm_config") or {}), content.get("vision_config") or {}
    architecture = (language.get("architectures") or ["?"])[0]
    if architecture != "Qwen2ForCausalLM":
        raise UserError(
            f"{where}: the language model {architecture} is not supported, only the Qwen2 family "
            "(InternVL2.5 1B, 4B, 38B, 78B; InternVL3 1B and up)"
        )
    if content.get("ps_version", "v2") != "v2":
        raise UserError(f"{where}: ps_version {content['ps_version']!r} is not supported, only 'v2'")
    vision_config = native_vision_config(vision, where)
    image_size = content.get("force_image_size") or vision["image_size"]
    ratio = content.get("downsample_ratio", 0.5)
    ours = ("architectures", "auto_map", "torch_dtype", "dtype", "attn_implementation", "model_type")
    language = {key: value for key, value in language.items() if key not in ours and not key.startswith("_")}
    return InternVLConfig(
        vision_config=vision_config,
        text_config=Qwen2Config(**language),
        vision_feature_layer=content.get("select_layer", -1),
        downsample_ratio=ratio,
        image_seq_length=int((image_size // vision["patch_size"] * ratio) ** 2),
    )


def native_vision_config(content: Mapping[str, Any], where: Path) -> InternVLVisionConfig:
    """The native configuration of a ViT from the original one.

    Raises:
        UserError: a setting is missing.
    """
    absent = [key for key in _VISION_KEYS if key not in content]
    if absent:
        raise UserError(f"{where}: the configuration of the ViT lacks {', '.join(absent)}")
    options = {native: content.get(key, default) for key, (native, default) in _VISION_OPTIONS.items()}
    options |= {key: content[key] for key in _OWN_OPTIONS if key in content}
    return InternVLVisionConfig(**{new: content[old] for old, new in _VISION_KEYS.items()}, **options)


def remote_vision_config(config: InternVLVisionConfig) -> dict[str, Any]:
    """The original configuration of a ViT: the reverse of `native_vision_config`."""
    return {
        "model_type": REMOTE_VISION,
        "architectures": ["InternVisionModel"],
        **{old: side(getattr(config, new)) for old, new in _VISION_KEYS.items()},
        **{old: getattr(config, new) for old, (new, _) in _VISION_OPTIONS.items()},
        **{key: getattr(config, key) for key in _OWN_OPTIONS if hasattr(config, key)},
    }


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder: one file or shards, safetensors or a weights-only readable .bin.

    Raises:
        UserError: there are no weights, a shard is missing, or a file cannot be read safely.
    """
    for name, read in ((WEIGHTS, load_file), ("pytorch_model.bin", _read_bin)):
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = shard_names(index)
        elif (folder / name).is_file():
            files = [name]
        else:
            continue
        state: dict[str, Tensor] = {}
        for file in files:
            check_archive(folder / file)
            try:
                state |= read(folder / file)
            except FileNotFoundError as error:
                raise UserError(f"{index} names {file}, which is not in {folder}") from error
            except Exception as error:  # damaged files raise many kinds
                raise UserError(f"cannot read the weights {folder / file} safely: {error}") from error
        return state
    raise UserError(f"{folder} holds no weights: {WEIGHTS}, pytorch_model.bin or their index with shards")


def _read_bin(file: Path) -> dict[str, Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True)


def shard_names(index: Path) -> list[str]:
    """The files that an index of sharded weights names, all in its own folder.

    Raises:
        UserError: it is no such index.
    """
    try:
        files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not an index of shards: {error!r}") from error
    outside = [file for file in files if not re.fullmatch(r"[\w.-]+", file) or file.startswith(".")]
    if outside:
        raise UserError(f"{index} names files outside its folder: {', '.join(outside[:10])}")
    return files


def load_internvl(folder: Path, attention: str) -> InternVLForConditionalGeneration:
    """The network of a local folder in either layout, in float32 on the CPU.

    Raises:
        UserError: configuration or weights do not fit, with up to ten keys of each kind.
    """
    config = read_config(folder)
    state = read_state(folder)
    if any(key.startswith(("vision_model.", "mlp1.")) for key in state):
        state = native_state(state)
    logging.disable_progress_bar()
    loaded: Any = InternVLForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.float32,
        attn_implementation=attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, all at once
    )
    network, report = loaded
    refuse_keys(
        folder,
        {
            "missing": list(report["missing_keys"]),
            "unexpected": list(report["unexpected_keys"]),
            "of another shape": [str(entry[0]) for entry in report["mismatched_keys"]],
        },
    )
    return network


def write_remote_code(network_state: Mapping[str, Tensor], config: InternVLConfig, folder: Path) -> None:
    """Write weights and configuration in the original layout, for tools that read that one.

    Args:
        network_state: native state dict, LoRA merged.
        config: the native configuration.
        folder: gets config.json and model.safetensors; the tokenizer is the same in both layouts.
    """
    vision: Any = config.vision_config
    text: Any = config.text_config
    content = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "vision_config": remote_vision_config(vision),
        "llm_config": {
            **text.to_diff_dict(),
            "architectures": ["Qwen2ForCausalLM"],
            "rope_theta": text.rope_parameters["rope_theta"],  # where older versions look for it
            "tie_word_embeddings": False,
        },
        "downsample_ratio": config.downsample_ratio,
        "force_image_size": side(vision.image_size),
        "ps_version": "v2",
        "select_layer": config.vision_feature_layer,
        "template": "internvl2_5",
        "dynamic_image_size": True,  # tiles and a thumbnail, as in training
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": MOST_TILES,
        "pad2square": False,
        "auto_map": _REMOTE_CODE,
        "tie_word_embeddings": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(content, ensure_ascii=False, indent=2), "utf-8")
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in remote_code_state(network_state).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def write_image_processor(folder: Path, size: int, mean: tuple[float, ...], std: tuple[float, ...], most_tiles: int) -> None:
    """Write how pictures become the network's tiles, as transformers' image processor of InternVL reads it."""
    content = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": most_tiles > 1,
        "min_patches": 1,
        "max_patches": most_tiles,
        "size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (folder / IMAGE_PROCESSOR).write_text(json.dumps(content, indent=2), "utf-8")


def side(value: int | list[int] | tuple[int, ...]) -> int:
    """The side of a square size, which transformers keeps as one number or as two."""
    return value if isinstance(value, int) else value[0]
