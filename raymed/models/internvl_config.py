"""InternVL's configurations: presets, and which pictures one can take."""

from __future__ import annotations

from typing import Any

from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

from raymed.errors import UserError
from raymed.models.internvl_weights import side, untied

SMALL = {"internvl-tiny": (64, 2), "internvl-small": (128, 4)}  # width of both towers, blocks of the image backbone
PRESETS = (*SMALL, "internvl2_5-1b")


def preset_config(name: str, size: int) -> InternVLConfig:
    """The configuration of a preset for pictures of size x size."""
    if name == "internvl2_5-1b":
        return internvl_config(size=size)
    width, blocks = SMALL[name]
    config = internvl_config(
        size=size,
        vision_hidden=width,
        vision_layers=blocks,
        vision_heads=width // 32,
        hidden=width,
        layers=2,
        heads=width // 32,
        vocabulary=268,
    )
    parts: list[Any] = [config, config.vision_config, config.text_config]
    for part in parts:
        part.initializer_range = 0.1  # about 1 / sqrt(width); with 0.02 so narrow a network hardly starts to learn
    vision: Any = config.vision_config
    vision.layer_scale_init_value = 1.0
    return config


def internvl_config(
    size: int = 448,
    vision_hidden: int = 1024,
    vision_layers: int = 24,
    vision_heads: int = 16,
    hidden: int = 896,
    layers: int = 24,
    heads: int = 14,
    key_value_heads: int = 2,
    intermediate: int | None = None,
    vocabulary: int = 151674,
) -> InternVLConfig:
    """An InternVL2.5 configuration; the defaults are the 1B model's (InternViT-300M and Qwen2.5-0.5B)."""
    return untied(
        InternVLConfig(
            vision_config=InternVLVisionConfig(
                hidden_size=vision_hidden,
                num_hidden_layers=vision_layers,
                num_attention_heads=vision_heads,
                intermediate_size=4 * vision_hidden,
                image_size=size,
                attention_bias=True,
            ),
            text_config=Qwen2Config(
                vocab_size=vocabulary,
                hidden_size=hidden,
                intermediate_size=intermediate or hidden * 4864 // 896,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=key_value_heads,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            ),
            image_seq_length=(size // 28) ** 2,
        )
    )


def check_size(config: InternVLConfig, size: int) -> None:
    """Refuse a picture size whose patches do not divide into the pixel shuffle's groups.

    Raises:
        UserError: names the two nearest sizes.
    """
    vision: Any = config.vision_config
    step = round(side(vision.patch_size) / config.downsample_ratio)
    if size < step or size % step:
        lower = max(step, size // step * step)
        raise UserError(
            f"InternVL takes pictures whose side is a multiple of {step}, not {size}: prepare the data at "
            f"{lower} or {lower + step} pixels"
        )
