"""The image autoencoder, frozen: pictures to the latent tokens that generation draws, and back.

It is diffusers' AutoencoderKL in FLUX's shape. Each picture is encoded at its own size, so that its latents do not depend on
which others it is packed with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from raymed.systems.unimedvl.settings import AutoencoderSizes

_PARTS = (  # diffusers' names, and those of Black Forest Labs
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)
_ATTENTION = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$")  # 1 x 1 convolutions there, linear layers here


class ImageAutoencoder(nn.Module):
    """Pictures to latent tokens and back.

    Attributes:
        network: diffusers' autoencoder.
        patch: side of the square of latents that makes a token.
    """

    def __init__(self, sizes: AutoencoderSizes, patch: int) -> None:
        super().__init__()
        levels = len(sizes.multipliers)
        self.network: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(sizes.channels * multiplier for multiplier in sizes.multipliers),
            layers_per_block=sizes.blocks,
            latent_channels=sizes.latent_channels,
            norm_num_groups=sizes.norm_groups,
            scaling_factor=sizes.scale,
            shift_factor=sizes.shift,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        self.sizes, self.patch = sizes, patch
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a picture's latent tokens; the latents are mean + deviation * a normal draw.

        Args:
            picture: uint8 [3, height, width], both multiples of the token's side.

        Returns:
            Both float32 [rows * columns, token width], scaled and shifted.
        """
        pixels = picture.to(self.network.dtype)[None] / 255 * 2 - 1
        posterior = self.network.encode(pixels).latent_dist
        mean = self.sizes.scale * (posterior.mean.float() - self.sizes.shift)
        return to_tokens(mean[0], self.patch), to_tokens(self.sizes.scale * posterior.std.float()[0], self.patch)

    @torch.no_grad()
    def decode(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """The picture that latent tokens stand for.

        Args:
            tokens: [rows * columns, token width].

        Returns:
            uint8 [3, height, width].
        """
        latents = from_tokens(tokens, rows, columns, self.patch) / self.sizes.scale + self.sizes.shift
        pixels = self.network.decode(latents[None].to(self.network.dtype)).sample[0].float()
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8)


def sampled(moments: Tensor, noise: Tensor) -> Tensor:
    """Latent tokens drawn from the distribution of mean and deviation side by side, float32 [tokens, 2 * width]."""
    mean, deviation = moments.chunk(2, 1)
    return torch.addcmul(mean.contiguous(), deviation.contiguous(), noise)


def to_tokens(latents: Tensor, patch: int) -> Tensor:
    """Latents [channels, height, width] as tokens [rows * columns, patch * patch * channels], channels innermost."""
    channels, height, width = latents.shape
    squares = latents.view(channels, height // patch, patch, width // patch, patch)
    return squares.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def from_tokens(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """What `to_tokens` was given."""
    squares = tokens.view(rows, columns, patch, patch, -1)
    return squares.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch)


def checkpoint_state(autoencoder: ImageAutoencoder) -> dict[str, Tensor]:
    """Its weights as ae.safetensors names and shapes them."""
    state = {}
    for key, tensor in autoencoder.network.state_dict().items():
        name = _checkpoint_name(key, len(autoencoder.sizes.multipliers))
        state[name] = tensor[:, :, None, None] if _ATTENTION.search(name) else tensor
    return state


def load_checkpoint_state(autoencoder: ImageAutoencoder, state: Mapping[str, Tensor]) -> None:
    """Take over weights named and shaped as in ae.safetensors; `checkpoint_state` says which, and all must be there."""
    levels = len(autoencoder.sizes.multipliers)
    own = autoencoder.network.state_dict()
    native = {key: state[_checkpoint_name(key, levels)].view(tensor.shape) for key, tensor in own.items()}
    autoencoder.network.load_state_dict(native, assign=True)
    autoencoder.requires_grad_(False)


def _checkpoint_name(key: str, levels: int) -> str:
    for pattern, name in _PARTS:
        key = re.sub(pattern, name, key)
    return re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", key)
