"""BAGEL's and UniMedVL's checkpoint folders, read and written: weights, autoencoder, two configurations, tokenizer.

Weights go from the file into the network one shard at a time, so that they are in memory once. Every tensor of a file is
taken, or is a fixed table that is compared with its formula; every weight of the network is found. All else is an error.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import Tensor

from raymed.errors import UserError
from raymed.models.backbone_weights import refuse_keys
from raymed.storage.folder import Folder
from raymed.systems.unimedvl.autoencoder import ImageAutoencoder, checkpoint_state, load_checkpoint_state
from raymed.systems.unimedvl.checkpoint_config import (
    AUTOENCODERS,
    LATENT_TABLE,
    VISION_TABLE,
    autoencoder_file,
    autoencoder_sizes,
    opened,
    sizes_of,
    stored_shapes,
    weight_files,
    write_configs,
)
from raymed.systems.unimedvl.embeddings import grid_embedding
from raymed.systems.unimedvl.network import UniMedVL, start_generation, start_weights
from raymed.systems.unimedvl.settings import PRESETS, NetworkSizes, UnifiedModelSettings
from raymed.systems.unimedvl.tokens import TextTokens

log = logging.getLogger("raymed")

TABLES = {LATENT_TABLE: "latent_side", VISION_TABLE: "vit_side"}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # between a stored table and its formula
_GENERATION = re.compile(r"_moe_gen\.|^(vae2llm|llm2vae|time_embedder)\.")  # what only drawing needs


def checkpoint_name(key: str) -> str:
    """What a checkpoint calls a parameter of the network."""
    return key.replace(".generation.", "_moe_gen.").replace(".understanding.", ".")


def network_sizes(settings: UnifiedModelSettings) -> NetworkSizes:
    """The sizes of the network that the settings name: of its checkpoint, or of the preset and its autoencoder.

    Raises:
        UserError: a file is missing or damaged.
    """
    if settings.path is not None:
        sizes = sizes_of(Path(settings.path), settings.weights)
    else:
        sizes = PRESETS[settings.preset]
        if settings.vae_path is not None:
            sizes = replace(sizes, autoencoder=autoencoder_sizes(Folder.at(settings.vae_path)))
    return sizes if settings.max_latent_size is None else replace(sizes, latent_side=settings.max_latent_size)


def build(settings: UnifiedModelSettings, sizes: NetworkSizes) -> UniMedVL:
    """The network with its starting weights: a folder's, in its own types, or drawn from torch's generator.

    Args:
        sizes: what `network_sizes` says.

    Raises:
        UserError: the folder's weights do not fit.
    """
    if settings.path is not None:
        return load(Path(settings.path), sizes, settings)
    network = UniMedVL(sizes)
    start_weights(network, settings.copy_init_moe)
    if settings.vae_path is not None:
        network.take_autoencoder(load_autoencoder(Folder.at(settings.vae_path), sizes))
    return network


def load(folder: Path, sizes: NetworkSizes, settings: UnifiedModelSettings) -> UniMedVL:
    """The network of a checkpoint folder, on the CPU, in the weights' own types.

    Raises:
        UserError: a file is missing or damaged, or a key is missing, unknown or of another shape.
    """
    files = weight_files(folder, settings.weights)
    with torch.device("meta"):
        network = UniMedVL(sizes)
    stored_sizes = sizes_of(folder, settings.weights)
    names = {checkpoint_name(key): key for key in network.state_dict()}
    shapes = {checkpoint_name(key): tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    stored = {key: shape for file in files for key, shape in stored_shapes(file).items()}
    missing = shapes.keys() - stored.keys()
    generation = {key for key in shapes if _GENERATION.search(key)}
    without_generation = generation <= missing  # all of it, not a part
    if without_generation and settings.new_generation:
        missing -= generation
    elif missing == generation:
        raise UserError(
            f"{files[0]} holds no weights to draw with: {len(missing)} are missing, such as {min(missing)}. To start them "
            "from the understanding expert's, give --model.new_generation true"
        )
    refuse_keys(
        files[0],
        {
            "missing": missing,
            "unexpected": stored.keys() - shapes.keys() - TABLES.keys(),
            "of another shape": [key for key in shapes.keys() & stored.keys() if shapes[key] != stored[key]],
        },
    )
    for file in files:
        with opened(file) as tensors:
            held = set(tensors.keys())
            state = {names[key]: tensors.get_tensor(key) for key in names.keys() & held}
            for key in TABLES.keys() & held:
                _check_table(file, key, tensors.get_tensor(key), stored_sizes)
        network.load_state_dict(state, strict=False, assign=True)
    if without_generation:
        start_generation(network)
    network.take_autoencoder(load_autoencoder(Folder.at(folder), sizes))
    log.info("%d of %d weights taken from %s", len(shapes.keys() & stored.keys()), len(shapes), files[0])
    return network


def save(network: UniMedVL, tokens: TextTokens, folder: Path) -> None:
    """Write a checkpoint folder that released code loads as well: weights (ema.safetensors), autoencoder, configurations,
    tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = network.sizes
    state = {checkpoint_name(key): tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    for key, grid in TABLES.items():
        state[key] = _table(sizes, grid)
    metadata = {"format": "pt"}
    save_file(state, folder / "ema.safetensors", metadata=metadata)
    drawing = {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint_state(network.autoencoder).items()}
    save_file(drawing, folder / AUTOENCODERS[0], metadata=metadata)
    write_configs(sizes, tokens.end, folder)
    tokens.tokenizer.save_pretrained(folder)


def load_autoencoder(folder: Folder, sizes: NetworkSizes) -> ImageAutoencoder:
    """The image autoencoder of a checkpoint folder.

    Raises:
        UserError: there is none, it is damaged, or does not fit its sizes.
    """
    name = autoencoder_file(folder)
    try:
        state = load_bytes(folder.read(name))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {folder.uri}/{name}: {error}") from error
    autoencoder = ImageAutoencoder(sizes.autoencoder, sizes.latent_patch)
    expected = checkpoint_state(autoencoder)
    refuse_keys(
        Path(folder.uri) / name,
        {
            "missing": expected.keys() - state.keys(),
            "unexpected": state.keys() - expected.keys(),
            "of another shape": [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape],
        },
    )
    load_checkpoint_state(autoencoder, state)
    return autoencoder


def _table(sizes: NetworkSizes, grid: str) -> Tensor:
    side = getattr(sizes.grids, grid)
    return grid_embedding(torch.arange(side**2), side, sizes.language.hidden)


def _check_table(file: Path, key: str, stored: Tensor, sizes: NetworkSizes) -> None:
    ours = _table(sizes, TABLES[key])
    if stored.shape != ours.shape or not torch.allclose(stored.float(), ours, atol=TOLERANCE.get(stored.dtype, 1e-2)):
        raise UserError(
            f"{file}: {key} is not the fixed table of a grid of {getattr(sizes.grids, TABLES[key])} places a side"
        )
