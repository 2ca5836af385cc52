"""The sizes of the unified network: language model, ViT, image autoencoder, and the grids that pictures are cut into."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from raymed.errors import UserError
from raymed.job.mistakes import did_you_mean
from raymed.models.model_folders import find_model
from raymed.storage.folder import Folder

CHECKPOINT_FILES = "ema.safetensors, ae.safetensors, llm_config.json, vit_config.json and the tokenizer's"
TINY = "unimedvl-tiny"
SMALL = "unimedvl-0.5b"
LARGE = "unimedvl-7b"


@dataclass(frozen=True)
class GridSettings:
    """The grids that pictures are cut into.

    Attributes:
        vit_patch: side of a ViT patch, in pixels.
        vit_side: most patches along a side of a picture.
        latent_stride: side of a latent token, in pixels.
        latent_side: most latent tokens along a side of a picture.
    """

    vit_patch: int = 14
    vit_side: int = 70
    latent_stride: int = 16
    latent_side: int = 64


@dataclass(frozen=True)
class LanguageSizes:
    """A Qwen2 decoder, of which the network holds two copies that attend to each other.

    Attributes:
        vocabulary: rows of the table of tokens.
        hidden: width of a token.
        layers: number of layers.
        heads: heads of the queries.
        key_value_heads: heads of keys and values.
        intermediate: width inside the MLP.
        rope_theta: base of the rotary positions' wavelengths.
        norm_eps: added to the mean square in RMSNorm.
    """

    vocabulary: int = 152_064
    hidden: int = 3584
    layers: int = 28
    heads: int = 28
    key_value_heads: int = 4
    intermediate: int = 18_944
    rope_theta: float = 1e6
    norm_eps: float = 1e-6

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class VisionSizes:
    """A SigLIP ViT over pictures of any size: `side` * `side` learned positions.

    Attributes:
        hidden: width of a patch's token.
        layers: number of layers; the released model uses 26 of SigLIP's 27.
        heads: heads of the attention.
        intermediate: width inside the MLP.
        patch: side of a patch, in pixels.
        side: most patches along a side of a picture.
        norm_eps: added to the variance in layer norms.
    """

    hidden: int = 1152
    layers: int = 26
    heads: int = 16
    intermediate: int = 4304
    patch: int = 14
    side: int = 70
    norm_eps: float = 1e-6


@dataclass(frozen=True)
class AutoencoderSizes:
    """An image autoencoder of FLUX's shape: convolutions from 3 colours to a few channels at a fraction of the side.

    Attributes:
        channels: width at full resolution.
        multipliers: width at each level, in `channels`; each level but the first halves the side.
        blocks: residual blocks a level.
        latent_channels: channels of a latent.
        norm_groups: groups of the group norms.
        scale, shift: a latent is scale * (sample - shift), about unit variance.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 16
    norm_groups: int = 32
    scale: float = 0.3611
    shift: float = 0.1159

    @property
    def stride(self) -> int:
        """Pixels of a picture's side per latent."""
        return int(2 ** (len(self.multipliers) - 1))


@dataclass(frozen=True)
class NetworkSizes:
    """All sizes of the network; the defaults are those of BAGEL-7B-MoT and UniMedVL.

    Attributes:
        language: both experts.
        vision: the ViT that understanding sees pictures with.
        autoencoder: what generation draws in.
        latent_patch: side of the square of latents that makes a token.
        latent_side: most latent tokens along a side of a picture.
    """

    language: LanguageSizes = field(default_factory=LanguageSizes)
    vision: VisionSizes = field(default_factory=VisionSizes)
    autoencoder: AutoencoderSizes = field(default_factory=AutoencoderSizes)
    latent_patch: int = 2
    latent_side: int = 64

    @property
    def latent_width(self) -> int:
        """Numbers in a latent token."""
        return self.latent_patch**2 * self.autoencoder.latent_channels

    @property
    def grids(self) -> GridSettings:
        stride = self.autoencoder.stride * self.latent_patch
        return GridSettings(self.vision.patch, self.vision.side, stride, self.latent_side)


def checkpoint_folder(name: str) -> Path:
    """The absolute path of a released folder, or of the model in a checkpoint that was trained here, by its path or by its
    name under RAYMED_MODELS.

    Raises:
        UserError: there is none.
    """
    path = find_model(name, CHECKPOINT_FILES)
    trained = path / "model"
    return trained if (trained / "llm_config.json").is_file() else path


PRESETS = {
    TINY: NetworkSizes(
        language=LanguageSizes(
            vocabulary=264, hidden=64, layers=2, heads=2, key_value_heads=1, intermediate=128, rope_theta=1e4
        ),
        vision=VisionSizes(hidden=32, layers=2, heads=2, intermediate=64, side=4),
        autoencoder=AutoencoderSizes(channels=16, multipliers=(1, 2, 2), blocks=1, latent_channels=8, norm_groups=8),
        latent_side=8,
    ),
    SMALL: NetworkSizes(
        language=LanguageSizes(vocabulary=151_936, hidden=896, layers=24, heads=14, key_value_heads=2, intermediate=4864)
    ),
    LARGE: NetworkSizes(),
}


@dataclass(frozen=True)
class UnifiedModelSettings:
    """The network and what of it is trained.

    Attributes:
        preset: random weights: `unimedvl-tiny` for a CPU, `unimedvl-0.5b` or `unimedvl-7b` (14 billion weights).
        path: local folder of a released or trained checkpoint (ema.safetensors, ae.safetensors, llm_config.json,
            vit_config.json, tokenizer), in place of the preset, or a checkpoint of a run here; by its path, or by its name
            under RAYMED_MODELS.
        weights: which of the folder's weights: ema are the averaged ones.
        vae_path: folder or URI with the image autoencoder (ae.safetensors) of a preset; for `unimedvl-tiny` one is fitted to
            the training pictures where none is given.
        new_generation: the folder may lack the generation expert, which then starts as the understanding one's copy.
        copy_init_moe: of a preset, the generation expert starts as the understanding one's copy.
        freeze_llm: keep both experts, the token table and the output layer as they are.
        freeze_vit: keep the ViT as it is.
        freeze_und: keep the understanding expert, the token table, the ViT and its connector as they are, and let no
            gradient through; the output layer is trained all the same.
        vit_lr_scale: learning rate of the ViT, relative to the rest's.
        gradient_checkpointing: compute activations again in the backward pass: less memory, about a third more time.
        max_latent_size: most latent tokens along a side of a picture, in place of the checkpoint's or preset's: their
            positions are a formula, which knows larger grids too.
    """

    preset: str = TINY
    path: str | None = None
    weights: Literal["ema", "model"] = "ema"
    vae_path: str | None = None
    new_generation: bool = False
    copy_init_moe: bool = True
    freeze_llm: bool = False
    freeze_vit: bool = False
    freeze_und: bool = False
    vit_lr_scale: float = 1.0
    gradient_checkpointing: bool = False
    max_latent_size: int | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.preset not in PRESETS:
            raise UserError(f"there is no preset {self.preset!r}{did_you_mean(self.preset, PRESETS)}: {', '.join(PRESETS)}")
        if self.path is not None and self.vae_path is not None:
            raise UserError("model.vae_path is for presets: the folder of model.path has an autoencoder of its own")
        if self.max_latent_size is not None and self.max_latent_size < 1:
            raise UserError(f"model.max_latent_size is {self.max_latent_size}: it must be at least 1")
        if self.vit_lr_scale <= 0:
            raise UserError("model.vit_lr_scale is above 0 (model.freeze_vit freezes)")

    def located(self) -> UnifiedModelSettings:
        """With the absolute paths that `path` and `vae_path` stand for: workers have another working folder.

        Raises:
            UserError: there is none.
        """
        return replace(
            self,
            path=None if self.path is None else str(checkpoint_folder(self.path)),
            vae_path=None if self.vae_path is None else Folder.at(self.vae_path).uri,
        )

    @property
    def pretrained(self) -> tuple[str, ...]:
        return tuple(path for path in (self.path, self.vae_path) if path is not None)

    @property
    def origin(self) -> str:
        """Where the weights come from, in words."""
        return self.path if self.path is not None else f"preset {self.preset}"


@dataclass(frozen=True)
class UnifiedLossSettings:
    """The loss: cross-entropy of answers and squared error of the velocity of pictures, each a mean over its own tokens.

    Attributes:
        ce_weight: weight of the cross-entropy.
        mse_weight: weight of the squared error.
        timestep_shift: above 1 pictures are trained at times nearer to the noise.
        ce_loss_reweighting: a token of a long answer weighs less, by one over the root of how many there are.
    """

    ce_weight: float = 0.25
    mse_weight: float = 1.0
    timestep_shift: float = 1.0
    ce_loss_reweighting: bool = False

    def __post_init__(self) -> None:
        if min(self.ce_weight, self.mse_weight) < 0 or self.ce_weight + self.mse_weight == 0:
            raise UserError("loss.ce_weight and mse_weight cannot be negative, and one of them is above 0")
        if self.timestep_shift <= 0:
            raise UserError(f"loss.timestep_shift is {self.timestep_shift}: it must be above 0")
