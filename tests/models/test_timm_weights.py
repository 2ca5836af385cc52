"""Files of timm's weights compute here what timm's definition of the network computes from them.

Each definition below is written from the published architecture, with timm's names for the weights that it draws.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import ConvNextConfig, EfficientNetConfig, PreTrainedConfig, ResNetConfig, ViTConfig

from raymed.errors import UserError
from raymed.models.backbone_weights import load_weights
from raymed.models.backbones import make_backbone, pooled_features
from raymed.models.starnet import StarNetConfig

SIZE = 64


class Weights:
    """Random weights by name, made when first asked for."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.draw = torch.Generator().manual_seed(0)

    def make(self, name: str, *shape: int, fan: int = 0, positive: bool = False) -> Tensor:
        values = torch.randn(shape, generator=self.draw)
        self.state[name] = values.abs() + 0.5 if positive else values * (fan**-0.5 if fan else 0.2)
        return self.state[name]

    def conv(self, x: Tensor, name: str, outputs: int, kernel: int, bias: bool = False, **options: int) -> Tensor:
        inputs = x.shape[1] // options.get("groups", 1)
        weight = self.make(f"{name}.weight", outputs, inputs, kernel, kernel, fan=inputs * kernel**2)
        return F.conv2d(x, weight, self.make(f"{name}.bias", outputs) if bias else None, **options)  # type: ignore[arg-type]

    def linear(self, x: Tensor, name: str, outputs: int) -> Tensor:
        weight = self.make(f"{name}.weight", outputs, x.shape[-1], fan=x.shape[-1])
        return F.linear(x, weight, self.make(f"{name}.bias", outputs))

    def batch_norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        n = x.shape[1]
        self.make(f"{name}.num_batches_tracked", 1, positive=True)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        mean, variance = self.make(f"{name}.running_mean", n), self.make(f"{name}.running_var", n, positive=True)
        weight = self.make(f"{name}.weight", n, positive=True)
        return F.batch_norm(x, mean, variance, weight, self.make(f"{name}.bias", n), eps=eps)

    def layer_norm(self, x: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        n = x.shape[-1]
        return F.layer_norm(x, (n,), self.make(f"{name}.weight", n, positive=True), self.make(f"{name}.bias", n), eps)


def _resnet(w: Weights, x: Tensor) -> Tensor:
    x = w.batch_norm(w.conv(x, "conv1", 8, 7, stride=2, padding=3), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, (depth, width) in enumerate([(2, 16), (1, 32)], start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = w.batch_norm(w.conv(x, f"{name}.conv1", width // 4, 1), f"{name}.bn1").relu()
            y = w.batch_norm(w.conv(y, f"{name}.conv2", width // 4, 3, stride=stride, padding=1), f"{name}.bn2").relu()
            y = w.batch_norm(w.conv(y, f"{name}.conv3", width, 1), f"{name}.bn3")
            if block == 0:
                x = w.batch_norm(w.conv(x, f"{name}.downsample.0", width, 1, stride=stride), f"{name}.downsample.1")
            x = (x + y).relu()
    w.linear(x.mean((2, 3)), "fc", 5)
    return x.mean((2, 3))


def _convnext(w: Weights, x: Tensor) -> Tensor:
    x = w.layer_norm(w.conv(x, "stem.0", 8, 4, bias=True, stride=4).permute(0, 2, 3, 1), "stem.1")
    for stage, (depth, width) in enumerate([(2, 8), (1, 16)]):
        if stage:
            x = w.layer_norm(x, f"stages.{stage}.downsample.0")
            x = w.conv(x.permute(0, 3, 1, 2), f"stages.{stage}.downsample.1", width, 2, bias=True, stride=2)
            x = x.permute(0, 2, 3, 1)
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}"
            y = w.conv(x.permute(0, 3, 1, 2), f"{name}.conv_dw", width, 7, bias=True, padding=3, groups=width)
            y = w.layer_norm(y.permute(0, 2, 3, 1), f"{name}.norm")
            y = w.linear(F.gelu(w.linear(y, f"{name}.mlp.fc1", 4 * width)), f"{name}.mlp.fc2", width)
            x = x + y * w.make(f"{name}.gamma", width)
    features = w.layer_norm(x.mean((1, 2)), "head.norm")
    w.linear(features, "head.fc", 5)
    return features


def _efficientnet(w: Weights, x: Tensor) -> Tensor:
    """B0's blocks with a tenth of its channels; padding is TensorFlow's, for even sizes."""

    def same(x: Tensor, kernel: int, stride: int) -> Tensor:
        total = kernel - stride
        return F.pad(x, [total // 2, total - total // 2] * 2)

    x = F.silu(w.batch_norm(w.conv(same(x, 3, 2), "conv_stem", 8, 3, stride=2), "bn1", 1e-3))
    #         repeats, kernel, stride, expansion, channels
    stages = [(1, 3, 1, 1, 8), (2, 3, 2, 6, 8), (2, 5, 2, 6, 8), (3, 3, 2, 6, 8), (3, 5, 1, 6, 16), (4, 5, 2, 6, 24)]
    for stage, (repeats, kernel, first, expansion, channels) in enumerate([*stages, (1, 3, 1, 6, 32)]):
        for block in range(repeats):
            name, inputs, stride = f"blocks.{stage}.{block}", x.shape[1], first if block == 0 else 1
            y, wide, norms = x, inputs * expansion, iter(("bn1", "bn2", "bn3"))
            if expansion > 1:
                y = F.silu(w.batch_norm(w.conv(y, f"{name}.conv_pw", wide, 1), f"{name}.{next(norms)}", 1e-3))
            y = w.conv(same(y, kernel, stride), f"{name}.conv_dw", wide, kernel, stride=stride, groups=wide)
            y = F.silu(w.batch_norm(y, f"{name}.{next(norms)}", 1e-3))
            s = F.silu(w.conv(y.mean((2, 3), keepdim=True), f"{name}.se.conv_reduce", max(1, inputs // 4), 1, bias=True))
            y = y * w.conv(s, f"{name}.se.conv_expand", wide, 1, bias=True).sigmoid()
            y = w.conv(y, f"{name}.{'conv_pwl' if expansion > 1 else 'conv_pw'}", channels, 1)
            y = w.batch_norm(y, f"{name}.{next(norms)}", 1e-3)
            x = x + y if block else y
    x = F.silu(w.batch_norm(w.conv(x, "conv_head", 128, 1), "bn2", 1e-3)).mean((2, 3))
    w.linear(x, "classifier", 5)
    return x


def _starnet(w: Weights, x: Tensor) -> Tensor:
    x = F.relu6(w.batch_norm(w.conv(x, "stem.0.conv", 32, 3, bias=True, stride=2, padding=1), "stem.0.bn"))
    for stage, (depth, width) in enumerate([(2, 8), (1, 16)]):
        x = w.conv(x, f"stages.{stage}.0.conv", width, 3, bias=True, stride=2, padding=1)
        x = w.batch_norm(x, f"stages.{stage}.0.bn")
        for block in range(1, depth + 1):
            name = f"stages.{stage}.{block}"
            y = w.conv(x, f"{name}.dwconv.conv", width, 7, bias=True, padding=3, groups=width)
            y = w.batch_norm(y, f"{name}.dwconv.bn")
            y = F.relu6(w.conv(y, f"{name}.f1.conv", 4 * width, 1, bias=True)) * w.conv(
                y, f"{name}.f2.conv", 4 * width, 1, bias=True
            )
            y = w.batch_norm(w.conv(y, f"{name}.g.conv", width, 1, bias=True), f"{name}.g.bn")
            x = x + w.conv(y, f"{name}.dwconv2.conv", width, 7, bias=True, padding=3, groups=width)
    x = w.batch_norm(x, "norm").mean((2, 3))
    w.linear(x, "head", 5)
    return x


def _vit(w: Weights, x: Tensor) -> Tensor:
    x = w.conv(x, "patch_embed.proj", 32, 16, bias=True, stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([w.make("cls_token", 1, 1, 32).expand(len(x), -1, -1), x], dim=1)
    x = x + w.make("pos_embed", 1, 17, 32)
    for block in range(2):
        name = f"blocks.{block}"
        qkv = w.linear(w.layer_norm(x, f"{name}.norm1"), f"{name}.attn.qkv", 96)
        q, k, v = qkv.unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        attended = ((q @ k.transpose(-1, -2)) / 4).softmax(-1) @ v
        x = x + w.linear(attended.transpose(1, 2).flatten(2), f"{name}.attn.proj", 32)
        y = F.gelu(w.linear(w.layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1", 64))
        x = x + w.linear(y, f"{name}.mlp.fc2", 32)
    x = w.layer_norm(x, "norm")[:, 0]
    w.linear(x, "head", 5)
    return x


CASES: dict[str, tuple[Callable[[Weights, Tensor], Tensor], PreTrainedConfig]] = {
    "resnet": (_resnet, ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1], layer_type="bottleneck")),
    "convnext": (_convnext, ConvNextConfig(hidden_sizes=[8, 16], depths=[2, 1], num_stages=2, layer_norm_eps=1e-6)),
    "efficientnet": (
        _efficientnet,
        EfficientNetConfig(width_coefficient=0.1, depth_coefficient=1.0, hidden_dim=128, image_size=SIZE),
    ),
    "starnet": (_starnet, StarNetConfig(width=8, depths=(2, 1))),
    "vit": (
        _vit,
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=SIZE,
            layer_norm_eps=1e-6,
        ),
    ),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_features_are_those_of_timms_definition(kind: str, suffix: str, tmp_path: Path) -> None:
    definition, config = CASES[kind]
    weights, file = Weights(), tmp_path / f"weights{suffix}"
    pictures = torch.randn(2, 3, SIZE, SIZE)
    expected = definition(weights, pictures)
    assert float(expected.std()) > 0.01, "weights that make no difference prove nothing"
    if suffix == ".pth":
        torch.save({"state_dict": weights.state}, file)
    else:
        save_file(weights.state, file)
    backbone = make_backbone(config, SIZE)
    load_weights(backbone, file)
    with torch.no_grad():
        features = pooled_features(backbone.eval(), pictures, class_token=True)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


def test_positions_of_a_vit_are_resampled_to_the_pictures(tmp_path: Path) -> None:
    weights = Weights()
    _vit(weights, torch.randn(1, 3, SIZE, SIZE))
    save_file(weights.state, tmp_path / "vit.safetensors")
    config = ViTConfig(**CASES["vit"][1].to_dict() | {"image_size": 96})
    backbone = make_backbone(config, 96)
    load_weights(backbone, tmp_path / "vit.safetensors")
    positions = backbone.state_dict()["embeddings.position_embeddings"]
    assert positions.shape == (1, 37, 32)
    assert torch.equal(positions[:, 0], weights.state["pos_embed"][:, 0]), "the class token has no place"


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights = Weights()
    _starnet(weights, torch.randn(1, 3, SIZE, SIZE))
    state = weights.state | {"stages.0.1.extra.weight": torch.zeros(1)}
    state["stages.0.0.conv.weight"] = state["stages.0.0.conv.weight"][:3]
    del state["norm.bias"]
    save_file(state, tmp_path / "starnet.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(make_backbone(CASES["starnet"][1], SIZE), tmp_path / "starnet.safetensors")
    message = str(error.value)
    assert "1 missing: norm.bias" in message and "1 unexpected: stages.0.1.extra.weight" in message
    assert "1 of another shape: stages.0.downsample.conv.weight" in message


def test_a_file_that_is_no_weights_or_has_no_key_map_is_refused(tmp_path: Path) -> None:
    backbone = make_backbone(CASES["resnet"][1], SIZE)
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a file of weights"):
        load_weights(backbone, tmp_path / "other.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read the weights .*broken"):
        load_weights(backbone, tmp_path / "broken.safetensors")


def test_a_pickle_in_a_file_of_weights_is_not_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.mkdir, (tmp_path / "executed",))  # type: ignore[return-value]

    torch.save({"state_dict": Attack()}, tmp_path / "attack.pth")
    with pytest.raises(UserError, match="safely"):
        load_weights(make_backbone(CASES["resnet"][1], SIZE), tmp_path / "attack.pth")
    assert not (tmp_path / "executed").exists()
