"""Sizes of pictures: the vectors of BAGEL's rule, and a rule that does not shrink more than it must."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from raymed.errors import UserError
from raymed.systems.unimedvl.resize import ResizeSettings, resized, target_size

VAE = ResizeSettings(16, 1024, 512, rule="legacy")
VIT = ResizeSettings(14, 980, 378, 2_007_040, rule="legacy")


@pytest.mark.parametrize(
    ("size", "vae", "vit", "one_of_four"),
    [
        ((512, 512), (512, 512), (518, 518), (518, 518)),
        ((300, 200), (768, 512), (560, 378), (560, 378)),
        ((2000, 500), (1024, 256), (980, 252), (980, 252)),
        ((1024, 1024), (1024, 1024), (980, 980), (518, 518)),
        ((3000, 2000), (1024, 688), (980, 658), (756, 518)),
    ],
)
def test_the_legacy_rule_gives_the_published_sizes(size, vae, vit, one_of_four) -> None:
    assert target_size(*size, VAE) == vae
    assert target_size(*size, VIT) == vit
    assert target_size(*size, VIT, images=4) == one_of_four


@pytest.mark.parametrize(
    ("size", "vae", "vit"),
    [
        ((1046, 4063), (256, 1024), (252, 980)),
        ((3309, 2244), (1024, 688), (980, 672)),
        ((1262, 3984), (320, 1024), (308, 980)),
    ],
)
def test_sides_are_rounded_to_pixels_before_they_are_rounded_to_tokens(size, vae, vit) -> None:
    """Sizes of the published formula, at which one rounding gives others."""
    assert target_size(*size, VAE) == vae
    assert target_size(*size, VIT) == vit


@pytest.mark.parametrize("size", [(1024, 1024), (3000, 2000), (500, 4000), (77, 3001)])
def test_the_sqrt_rule_fills_the_area_that_four_pictures_share(size) -> None:
    legacy = target_size(*size, VIT, images=4)
    width, height = target_size(*size, replace(VIT, rule="sqrt"), images=4)
    assert width % 14 == height % 14 == 0
    assert legacy[0] * legacy[1] <= width * height <= 1.05 * VIT.max_pixels / 4
    if max(width, height) < VIT.max_image_size:
        assert width * height >= 0.9 * VIT.max_pixels / 4


def test_transparency_becomes_white_and_colours_stay() -> None:
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 10, 20))
    pixels = resized(picture, ResizeSettings(4, 20, 20))
    assert pixels.shape == (20, 20, 3) and pixels.dtype == np.uint8
    assert pixels[5, 15].tolist() == [255, 255, 255] and pixels[5, 5].tolist() == [0, 0, 255]


def test_limits_that_contradict_each_other_are_named() -> None:
    with pytest.raises(UserError, match=r"min_image_size 512, max_image_size 256"):
        ResizeSettings(16, 256, 512)
