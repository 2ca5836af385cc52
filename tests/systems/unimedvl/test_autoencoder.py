import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import nn

from raymed.systems.unimedvl.autoencoder import (
    ImageAutoencoder,
    checkpoint_state,
    from_tokens,
    load_checkpoint_state,
    sampled,
    to_tokens,
)
from raymed.systems.unimedvl.settings import PRESETS, TINY, AutoencoderSizes

SIZES = PRESETS[TINY].autoencoder


def autoencoder(seed: int = 0) -> ImageAutoencoder:
    torch.manual_seed(seed)
    return ImageAutoencoder(SIZES, 2)


def picture(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8))


def test_every_weight_of_the_released_file_has_its_place():
    with torch.device("meta"):
        flux = ImageAutoencoder(AutoencoderSizes(), 2)
    state = checkpoint_state(flux)
    assert len(state) == len(flux.network.state_dict()) == 244
    for name, shape in {
        "encoder.down.0.block.1.conv2.weight": (128, 128, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (32, 512, 3, 3),
        "decoder.conv_in.weight": (512, 16, 3, 3),
        "decoder.mid.block_2.conv1.weight": (512, 512, 3, 3),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.3.block.2.norm1.weight": (512,),
    }.items():
        assert tuple(state[name].shape) == shape, name


def test_names_are_those_that_diffusers_reads_too():
    ours = autoencoder()
    levels = len(SIZES.multipliers)
    config = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    theirs = convert_ldm_vae_checkpoint(checkpoint_state(ours), config)
    own = ours.network.state_dict()
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[key], own[key]) for key in own)


def test_weights_come_back_from_their_file():
    first, second = autoencoder(0), autoencoder(1)
    load_checkpoint_state(second, {key: tensor.clone() for key, tensor in checkpoint_state(first).items()})
    image = picture(16, 24)
    assert all(torch.equal(a, b) for a, b in zip(first.encode(image), second.encode(image), strict=True))
    assert not any(parameter.requires_grad for parameter in second.parameters())


def test_a_latent_token_is_a_square_of_latents_with_channels_innermost():
    latents = torch.arange(16 * 4 * 6).view(16, 4, 6)
    tokens = to_tokens(latents, 2)
    assert tokens.shape == (6, 64)
    row, column, channel = 1, 0, 5
    assert tokens[4, (row * 2 + column) * 16 + channel] == latents[channel, 2 + row, 2 + column]
    assert torch.equal(from_tokens(tokens, 2, 3, 2), latents)


class Pass(nn.Module):
    """Stands for convolutions that keep what they are given, so that only scale, shift, order and rounding are left."""

    dtype = torch.float32

    def encode(self, pixels):
        class Answer:
            class latent_dist:  # noqa: N801
                mean = pixels.repeat(1, 2, 1, 1)[:, :4]
                std = torch.ones_like(mean)

        return Answer

    def decode(self, latents):
        class Answer:
            sample = latents[:, :3]

        return Answer


def test_decoding_takes_scale_and_shift_back_and_cuts_off_as_released_code_does():
    whole = autoencoder()
    whole.network = Pass()
    image = picture(4, 6)
    mean, deviation = whole.encode(image)
    expected = 0.3611 * (image.float() / 255 * 2 - 1 - 0.1159)
    torch.testing.assert_close(from_tokens(mean, 2, 3, 2)[:3], expected)
    assert deviation.unique().tolist() == [pytest.approx(0.3611)]
    back = whole.decode(mean, 2, 3).int()
    assert (image.int() - back).min() >= 0 and (image.int() - back).max() <= 1  # cut off, not rounded


def test_latents_are_drawn_by_mean_and_deviation():
    moments, noise = torch.cat(autoencoder().encode(picture(16, 24)), 1), torch.randn(6, 4 * SIZES.latent_channels)
    mean, deviation = moments.split(4 * SIZES.latent_channels, 1)
    torch.testing.assert_close(sampled(moments, noise), mean + deviation * noise)
