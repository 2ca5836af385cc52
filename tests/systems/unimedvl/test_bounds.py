"""Bounds: a configuration whose pictures do not fit the network is refused before training, by the name of its group."""

from dataclasses import asdict, replace

import pytest

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.systems.unimedvl.bounds import check_bounds
from raymed.systems.unimedvl.mixture_config import VAE
from raymed.systems.unimedvl.resize import VIT, ResizeSettings
from raymed.systems.unimedvl.settings import LARGE, PRESETS, GridSettings

GRIDS = PRESETS[LARGE].grids


def data(prepared: Prepared, kinds: dict[str, int], vit: ResizeSettings = VIT, vae: ResizeSettings = VAE) -> Prepared:
    counts = {"vit": 0, "vae": 0, "target": 0, **kinds}
    group = {"sets": ["x"], "vit": asdict(vit), "vae": asdict(vae)}
    settings = {"groups": {"C/g": group}, "lines": {"C/g/x": counts}}
    return replace(prepared, manifest=replace(prepared.manifest, settings=settings))


def test_the_guides_transforms_fit_the_released_networks(prepared) -> None:
    check_bounds(data(prepared, {"vit": 5, "vae": 5, "target": 5}), GRIDS)


@pytest.mark.parametrize(
    ("kinds", "changed", "grids", "reason"),
    [
        ({"target": 1}, {}, replace(GRIDS, latent_side=32), r"C/g: image_.*64 tokens .* 32 latent .* most 512"),
        ({"vae": 1}, {"vae": replace(VAE, image_stride=8)}, GRIDS, "image_stride is 8, and a token .* 16 pixels"),
        ({"vit": 1}, {}, replace(GRIDS, vit_side=32), r"C/g: vit_image_transform_args: .*70 tokens .* at most 448"),
        ({"vit": 1}, {"vit": replace(VIT, image_stride=16)}, GRIDS, "image_stride is 16, and a token .* 14 pixels"),
    ],
)  # fmt: skip
def test_bounds_that_are_exceeded_name_the_group(prepared, kinds, changed, grids, reason) -> None:
    with pytest.raises(UserError, match=reason):
        check_bounds(data(prepared, kinds, **changed), grids)


def test_what_no_sequence_uses_is_not_checked(prepared) -> None:
    check_bounds(data(prepared, {"vit": 1}), GridSettings(latent_side=1))


def test_data_of_another_system_are_refused(prepared) -> None:
    with pytest.raises(UserError, match="holds no sequences"):
        check_bounds(prepared, GRIDS)
