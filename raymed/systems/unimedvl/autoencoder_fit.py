"""An image autoencoder for the tiny network, fitted to pictures: one with random weights would draw nothing.

It is a variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114) whose divergence weighs next to nothing, as in
latent diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.1). Residual blocks begin as the identity (Zhang et al.
2019, arXiv:1901.09321), and many steps on few crops fit it sooner than few on many. It takes about a minute on a CPU, once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save
from torch import Tensor

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.autoencoder import ImageAutoencoder, checkpoint_state, load_checkpoint_state
from raymed.systems.unimedvl.checkpoint_config import AUTOENCODER_CONFIG, AUTOENCODERS
from raymed.systems.unimedvl.settings import NetworkSizes

log = logging.getLogger("raymed")

STEPS, BATCH, CROP, LR = 1000, 2, 32, 4e-3
DIVERGENCE = 1e-5  # weight of the divergence from the normal distribution
PICTURES = 128  # that are fitted to
FITTING = 2  # of this procedure: other weights from the same pictures need another number


def fitted_autoencoder(sizes: NetworkSizes, prepared: Prepared, fold: int | None, storage: Folder) -> str:
    """URI of a folder under the storage with an autoencoder fitted to training pictures; made unless it is there.

    Raises:
        UserError: no training sample has a picture that the autoencoder sees.
    """
    described = repr((FITTING, STEPS, BATCH, CROP, LR, sizes, prepared.digest, fold))
    folder = storage.child(f"autoencoder-{hashlib.blake2b(described.encode(), digest_size=3).hexdigest()}")
    if not folder.exists(AUTOENCODER_CONFIG):
        pictures = _training_pictures(prepared, fold)
        log.info("fitting an image autoencoder to %d training pictures: %d steps", len(pictures), STEPS)
        autoencoder = fit(ImageAutoencoder(sizes.autoencoder, sizes.latent_patch), pictures)
        folder.write(
            AUTOENCODERS[0], save({key: value.contiguous() for key, value in checkpoint_state(autoencoder).items()})
        )
        folder.write(AUTOENCODER_CONFIG, json.dumps(asdict(autoencoder.sizes)).encode())
    return folder.uri


def fit(autoencoder: ImageAutoencoder, pictures: Sequence[Tensor], steps: int = STEPS, seed: int = 0) -> ImageAutoencoder:
    """An autoencoder of the same sizes fitted to pictures, whose latents have the mean 0 and the deviation 1.

    Args:
        pictures: uint8 [3, height, width] each, at least `CROP` or a whole multiple of the latents' side.
        steps: of AdamW, on random crops.
    """
    stride = autoencoder.sizes.stride
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ImageAutoencoder(autoencoder.sizes, autoencoder.patch)
        network.requires_grad_(True)
        _begin_as_identity(network)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.1)
        draws = np.random.default_rng(seed)
        for _ in range(steps):
            batch = torch.stack([_crop(pictures[int(draws.integers(len(pictures)))], draws, stride) for _ in range(BATCH)])
            posterior = network.network.encode(batch).latent_dist
            drawn = network.network.decode(posterior.sample()).sample
            loss = F.mse_loss(drawn, batch) + DIVERGENCE * posterior.kl().mean() / posterior.mean[0].numel()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            latents = torch.cat(
                [network.network.encode(_pixels(each)[None]).latent_dist.mean.flatten() for each in pictures]
            )
    sizes = replace(autoencoder.sizes, scale=float(1 / latents.std()), shift=float(latents.mean()))
    scaled = ImageAutoencoder(sizes, autoencoder.patch)
    load_checkpoint_state(scaled, checkpoint_state(network))
    return scaled


@torch.no_grad()
def _begin_as_identity(network: ImageAutoencoder) -> None:
    """Let every residual block and attention add nothing."""
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            last: Any = module.conv2
        elif isinstance(module, Attention):
            last = module.to_out[0]
        else:
            continue
        last.weight.zero_()
        last.bias.zero_()


def _pixels(picture: Tensor) -> Tensor:
    return picture.float() / 255 * 2 - 1


def _crop(picture: Tensor, draws: np.random.Generator, stride: int) -> Tensor:
    _, height, width = picture.shape
    rows, columns = min(CROP, height // stride * stride), min(CROP, width // stride * stride)
    top, left = draws.integers(height - rows + 1), draws.integers(width - columns + 1)
    return _pixels(picture[:, top : top + rows, left : left + columns])


def _training_pictures(prepared: Prepared, fold: int | None) -> list[Tensor]:
    """Pictures of training samples as the autoencoder sees them, spread over the rows."""
    rows = prepared.rows("train", fold)
    chosen = rows[np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).astype(int)] if len(rows) else rows
    pictures = [
        torch.from_numpy(np.repeat(image.pixels, 3 // image.pixels.shape[2], 2).transpose(2, 0, 1).copy())
        for record in prepared.read(chosen)
        for image in record.images
        if image.role == "output"
    ]
    if not pictures:
        raise UserError(
            f"{prepared.folder.uri} has no picture to fit an image autoencoder to: give one by --model.vae_path, or a "
            "checkpoint by --model.path"
        )
    return pictures[:PICTURES]
