import numpy as np
import pytest
import torch

from raymed.systems.unimedvl.autoencoder import ImageAutoencoder
from raymed.systems.unimedvl.autoencoder_fit import fit
from raymed.systems.unimedvl.settings import PRESETS, TINY


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(-10 * torch.log10(((first.float() - second.float()) / 255).square().mean()))


def smooth(seed: int) -> torch.Tensor:
    """A grey picture without fine detail, uint8 [3, 32, 32]."""
    coarse = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")[0].clamp(0, 1)
    return (fine * 255).to(torch.uint8).expand(3, -1, -1).contiguous()


@pytest.mark.slow
def test_a_fitted_autoencoder_draws_what_it_saw_with_latents_of_unit_size():
    pictures = [smooth(seed) for seed in range(8)]
    torch.manual_seed(0)
    start = ImageAutoencoder(PRESETS[TINY].autoencoder, 2)
    fitted = fit(start, pictures, steps=120)
    latents = torch.cat([fitted.encode(each)[0] for each in pictures])
    assert abs(latents.mean()) < 0.05 and abs(latents.std() - 1) < 0.05
    drawn = [psnr(fitted.decode(fitted.encode(each)[0], 4, 4), each) for each in pictures]
    before = [psnr(start.decode(start.encode(each)[0], 4, 4), each) for each in pictures]
    assert np.mean(drawn) > 24 > np.mean(before) + 6
    again = fit(start, pictures, steps=3)
    other = fit(start, pictures, steps=3)
    assert torch.equal(again.encode(pictures[0])[0], other.encode(pictures[0])[0])
