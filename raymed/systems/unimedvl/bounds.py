"""Whether prepared sequences fit a network: checked before training, group by group, by what the configuration allows."""

from __future__ import annotations

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.systems.unimedvl.resize import ResizeSettings
from raymed.systems.unimedvl.settings import GridSettings


def check_bounds(prepared: Prepared, grids: GridSettings) -> None:
    """Make sure that no picture can have more tokens along a side than the network has positions for.

    Raises:
        UserError: names every group whose transform arguments do not fit, or the data are no sequences.
    """
    described = prepared.manifest.settings.get("groups")
    if described is None:
        raise UserError(f"{prepared.folder.uri} holds no sequences: prepare the data with jobs/prepare_unimedvl.py")
    wrong = []
    for title, group in described.items():
        counts = [prepared.manifest.settings["lines"][f"{title}/{name}"] for name in group["sets"]]
        for key, kinds, settings, stride, side, limit in (
            ("vit_image_transform_args", ("vit",), group["vit"], grids.vit_patch, grids.vit_side, "patches (vit_side)"),
            ("image_transform_args", ("vae", "target"), group["vae"], *_latents(grids)),
        ):
            if any(each[kind] for each in counts for kind in kinds):
                wrong += _problems(f"{title}: {key}", ResizeSettings(**settings), stride, side, limit)
    if wrong:
        raise UserError(
            "pictures do not fit the network: " + "; ".join(wrong) + ". Change the configuration and prepare again"
        )


def _latents(grids: GridSettings) -> tuple[int, int, str]:
    return grids.latent_stride, grids.latent_side, "latent tokens (max_latent_size)"


def _problems(where: str, settings: ResizeSettings, stride: int, side: int, limit: str) -> list[str]:
    if settings.image_stride != stride:
        return [f"{where}: image_stride is {settings.image_stride}, and a token of the network is {stride} pixels wide"]
    if settings.most_tokens_a_side > side:
        return [
            f"{where}: max_image_size {settings.max_image_size} is {settings.most_tokens_a_side} tokens of {stride} pixels, "
            f"and the network has {side} {limit} a side: at most {side * stride}"
        ]
    return []
