"""UniMedVL: one network that reads medical pictures and draws them, trained on packed sequences.

A record is a sequence of texts and pictures, each already at the size that the ViT or the autoencoder sees it at. All
samples of a micro-batch lie end to end; none sees another, and nothing is padded. Two terms make the loss: the cross-entropy
of answers, and the squared error of the velocity of pictures being drawn, each divided by its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from raymed.data.image import ImageSettings, recorded
from raymed.data.record import Record
from raymed.errors import UserError
from raymed.recipes.augment import generator
from raymed.recipes.exported import read_settings, write_settings
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.recipes.recipe import TOKENS, Batch, FrozenPart, Loss, LossTerm, ParameterGroup, TrainingPass
from raymed.systems.unimedvl.bounds import check_bounds
from raymed.systems.unimedvl.flow import draw_times
from raymed.systems.unimedvl.packs import PackedSequence, encode_sample, pack
from raymed.systems.unimedvl.resize import VAE, VIT, ResizeSettings
from raymed.systems.unimedvl.sequence import CondDropout
from raymed.systems.unimedvl.settings import NetworkSizes, UnifiedLossSettings, UnifiedModelSettings

if TYPE_CHECKING:
    from raymed.data.prepared import Prepared
    from raymed.registry.assessment import AssessmentSettings
    from raymed.registry.candidate import Candidate
    from raymed.systems.unimedvl.assessment import GeneralistAssessment
    from raymed.systems.unimedvl.tokens import TextTokens

ON_HOST = ("split_lengths", "split_modes", "split_samples", "patch_counts", "latent_grids")  # decide shapes
OF_SAMPLES = ("supervised_counts", "target_counts", "latent_counts")
NOT_INPUTS = ("noisy", "image_samples")  # of a packed sequence, spent in `encode`
VALIDATION = (0, 0)  # seed and epoch that the times and the noise of validation follow from: the same in all runs


@dataclass(frozen=True)
class UniMedVLRecipe:
    """The recipe `unimedvl`. Build it with `for_data`, which checks that model and data fit.

    Attributes:
        sizes: of the network.
        model: which network, and what of it is trained.
        loss: the loss.
        dropout: how often training leaves out a condition that may be left out.
        vit: how large pictures are to the ViT, in the data; a trained model looks at others alike.
        vae: the same to the autoencoder.
        image: how pictures were read from files: the window of CT, and what 16-bit values mean.
    """

    sizes: NetworkSizes
    model: UnifiedModelSettings = field(default_factory=UnifiedModelSettings)
    loss: UnifiedLossSettings = field(default_factory=UnifiedLossSettings)
    dropout: CondDropout = field(default_factory=CondDropout)
    vit: ResizeSettings = VIT
    vae: ResizeSettings = VAE
    image: ImageSettings = field(default_factory=ImageSettings)

    @classmethod
    def for_data(
        cls,
        prepared: Prepared,
        model: UnifiedModelSettings,
        loss: UnifiedLossSettings,
        dropout: CondDropout,
    ) -> UniMedVLRecipe:
        """The recipe for these prepared sequences.

        Raises:
            UserError: they are no sequences, or were prepared for another model.
        """
        from raymed.systems.unimedvl.checkpoint import network_sizes

        model = model.located()
        recipe = cls(network_sizes(model), model, loss, dropout)
        tokens = tokens_of(model)
        if tokens.size > recipe.sizes.language.vocabulary:
            raise UserError(
                f"the tokenizer of {model.origin} has ids up to {tokens.size - 1}, but its table of tokens ends at "
                f"{recipe.sizes.language.vocabulary - 1}: they do not belong together"
            )
        check_bounds(prepared, recipe.sizes.grids)
        if prepared.manifest.settings["tokenizer"] != tokens.digest:
            raise UserError(
                f"{prepared.folder.uri} was prepared with another tokenizer than that of {model.origin}, so lengths do not "
                f"hold: prepare it again with --tokenizer {model.path or model.preset}"
            )
        vit, vae = _transforms(prepared, "vit", ("vit",)), _transforms(prepared, "vae", ("vae", "target"))
        return replace(recipe, vit=vit or recipe.vit, vae=vae or recipe.vae, image=prepared.image)

    @classmethod
    def read(cls, folder: Path) -> UniMedVLRecipe:
        """The recipe that `export` wrote into a folder.

        Raises:
            UserError: the folder holds no exported model of this recipe.
        """
        from raymed.systems.unimedvl.checkpoint_config import sizes_of

        settings = read_settings(folder, "unimedvl")
        settings["model"].pop("latent_cache", None)  # in models of before latents were kept as all frozen parts' outputs are
        return cls(
            sizes=sizes_of(folder),
            model=UnifiedModelSettings(**settings["model"]),
            loss=UnifiedLossSettings(**settings["loss"]),
            dropout=CondDropout(**settings["dropout"]),
            vit=ResizeSettings(**settings["vit"]),
            vae=ResizeSettings(**settings["vae"]),
            image=ImageSettings.from_dict(settings["image"]) if "image" in settings else ImageSettings(),
        )

    @property
    def name(self) -> str:
        return "unimedvl"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        parts = (Metric("val_ce", "nats", "min", "{:.4f}", True, True), Metric("val_mse", "", "min", "{:.4f}", True, True))
        return (VAL_LOSS, *parts, Metric("train_ce", "nats", "min", "{:.4f}"), Metric("train_mse", "", "min", "{:.4f}"))

    @property
    def contrastive(self) -> bool:
        return False

    def build(self) -> nn.Module:
        """The network with its starting weights, from `model.path` or drawn from torch's generator; frozen as the settings
        say."""
        from raymed.systems.unimedvl import checkpoint

        network = checkpoint.build(self.model, self.sizes)
        network.freeze(self.model)
        return network

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """ViT and the rest, each with and without weight decay."""
        return parameter_groups(module, module.image_backbone, "vit", self.model.vit_lr_scale)  # type: ignore[arg-type]

    @property
    def frozen_part(self) -> FrozenPart:
        """The image autoencoder. Latents are drawn anew in every step, from the mean and deviation that are kept."""
        settings = {"autoencoder": asdict(self.sizes.autoencoder), "patch": self.sizes.latent_patch}
        return FrozenPart("autoencoder", settings, varied=False, roles=("output",))

    def features(self, module: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        """What the autoencoder makes of each sample's pictures in the order of the sequence, [latents, 2 * width]."""
        moments = module.moments_of(batch.tensors["pixels"], batch.tensors["latent_grids"])  # type: ignore[operator]
        return moments.split(batch.tensors["latent_counts"].tolist())

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """All samples end to end: the arguments of `UniMedVL.forward`, and of each sample how many tokens and latent tokens
        are learned, and how many latent tokens there are.

        Raises:
            UserError: a record is no sequence, or does not fit the model's grids.
        """
        seed, epoch = (training.seed, training.epoch) if training else VALIDATION
        keys = training.keys([record.id for record in records]) if training else [record.id for record in records]
        tokens, reweight = tokens_of(self.model), self.loss.ce_loss_reweighting
        samples, flows = [], []
        for record, key in zip(records, keys, strict=True):
            draws = generator(seed, epoch, key)
            dropping = draws if training else None
            sample = encode_sample(record, self.sizes.grids, tokens, self.dropout, dropping, reweight)
            samples.append(sample)
            flows.append(self._flow(sample, draws))
        sequence = pack(samples)
        arrays = {each.name: getattr(sequence, each.name) for each in fields(PackedSequence) if each.name not in NOT_INPUTS}
        arrays |= {name: np.concatenate([flow[name] for flow in flows]) for name in flows[0]}
        arrays["targets"] = np.flatnonzero(np.repeat(sequence.noisy, sequence.latent_grids.prod(1)))
        arrays["latent_counts"] = np.array([sample.latent_grids.prod(1).sum() for sample in samples], np.int64)
        arrays.pop("pixels" if any(record.features is not None for record in records) else "moments")
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        units = {"ce": float(sequence.label_weights.sum()), "mse": float(len(arrays["targets"]))}
        return Batch(tensors, units, [record.id for record in records], ON_HOST + OF_SAMPLES)

    def _flow(self, sample: PackedSequence, draws: np.random.Generator) -> dict[str, np.ndarray]:
        """Times and noise of a sample's latent tokens; one time for each picture that is drawn, 0 for the others."""
        areas = sample.latent_grids.prod(1)
        times = draw_times(draws, len(areas), self.loss.timestep_shift) * sample.noisy
        shape = (int(areas.sum()), self.sizes.latent_width)
        return {
            "times": np.repeat(times, areas).astype(np.float32),
            "noise": draws.standard_normal(shape, np.float32),
            "sampling_noise": draws.standard_normal(shape, np.float32),
        }

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        """`ce` over supervised tokens and `mse` over latent tokens of pictures being drawn; logs the mean of each."""
        losses = module(**_inputs(batch))
        settings = self.loss
        terms = {"ce": LossTerm(losses["ce"], settings.ce_weight), "mse": LossTerm(losses["mse"], settings.mse_weight)}
        ce, mse = losses["token_losses"], losses["latent_losses"]
        read = float(len(batch.tensors["positions"])), 0.0
        return Loss(terms, {"ce": (ce.sum(), float(len(ce))), "mse": (mse.sum(), float(len(mse))), TOKENS: read})

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """For each row `nll`, the summed cross-entropy of its answers, and `squared_error`, that of its pictures' latent
        tokens, float64; and how many `tokens` and `latents` were summed."""
        with torch.no_grad():
            losses = module(**_inputs(batch))
        tokens, latents = batch.tensors["supervised_counts"], batch.tensors["target_counts"]

        def summed(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
            rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts.tolist())).to(values.device, non_blocking=True)
            return torch.zeros(len(counts), dtype=torch.float64, device=values.device).index_add(0, rows, values.double())

        return {
            "nll": summed(losses["token_losses"], tokens),
            "tokens": tokens,
            "squared_error": summed(losses["latent_losses"], latents),
            "latents": latents,
        }

    def evaluate(self, predictions: dict[str, np.ndarray], records: dict[str, np.ndarray]) -> dict[str, float]:
        """`val_ce` and `val_mse`, means over all supervised tokens and drawn latent tokens, and `val_loss`, their weighted
        sum; the first two also of each data set."""
        metrics = self._means(predictions, np.ones(len(predictions["tokens"]), bool), "")
        weights = {"val_ce": self.loss.ce_weight, "val_mse": self.loss.mse_weight}
        metrics["val_loss"] = sum(weights[name] * value for name, value in metrics.items())
        sources = sorted(set(records["source"]))
        for source in sources if len(sources) > 1 else []:
            metrics |= self._means(predictions, records["source"] == source, f"_{source}")
        return metrics

    def _means(self, predictions: dict[str, np.ndarray], rows: np.ndarray, suffix: str) -> dict[str, float]:
        """The means that there are, over some rows."""
        means = {}
        for name, total, count in (("val_ce", "nll", "tokens"), ("val_mse", "squared_error", "latents")):
            if units := predictions[count][rows].sum():
                means[name + suffix] = float(predictions[total][rows].sum() / units)
        return means

    def assess(
        self, candidate: Candidate, network: Path, prepared: Prepared, how: AssessmentSettings
    ) -> GeneralistAssessment:
        """By its validation loss, and its answers and drawings about patients that it has not seen."""
        from raymed.systems.unimedvl.assessment import GeneralistAssessment

        return GeneralistAssessment.judged(candidate, self.load(network), network, prepared)  # type: ignore[arg-type]

    def judging_passes(self, rows: int) -> float:
        """Each row has a loss; a test row, half of them all, has an answer or a picture, up to a limit of either."""
        from raymed.systems.unimedvl.assessment import LIMIT, PASSES_OF_A_PICTURE

        return rows + min(rows / 2, 2 * LIMIT) * PASSES_OF_A_PICTURE

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write a checkpoint as BAGEL and UniMedVL lay it out, and `recipe.json`."""
        from raymed.systems.unimedvl import checkpoint

        checkpoint.save(module, tokens_of(self.model), folder)  # type: ignore[arg-type]
        write_settings(folder, self.settings())

    def load(self, folder: Path) -> nn.Module:
        """The network that `export` wrote, in evaluation mode on the CPU.

        Raises:
            UserError: the folder is not complete, or its weights do not fit.
        """
        from raymed.systems.unimedvl import checkpoint

        return checkpoint.load(folder, self.sizes, UnifiedModelSettings(path=str(folder))).eval()

    def settings(self) -> dict[str, Any]:
        return {
            "recipe": self.name,
            "sizes": asdict(self.sizes),
            "model": asdict(self.model),
            "loss": asdict(self.loss),
            "dropout": asdict(self.dropout),
            "vit": asdict(self.vit),
            "vae": asdict(self.vae),
            "image": recorded(self.image),
        }


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.tensors.items() if name not in OF_SAMPLES}


def _transforms(prepared: Prepared, key: str, kinds: Sequence[str]) -> ResizeSettings | None:
    """The transform that leaves pictures largest, of the groups that have pictures of these kinds."""
    described = prepared.manifest.settings
    used = [
        ResizeSettings(**group[key])
        for title, group in described["groups"].items()
        if any(described["lines"][f"{title}/{name}"][kind] for name in group["sets"] for kind in kinds)
    ]
    return max(used, key=lambda each: (each.max_image_size, each.max_pixels), default=None)


@lru_cache
def tokens_of(model: UnifiedModelSettings) -> TextTokens:
    """The tokenizer of the network that the settings name; presets have one of single bytes."""
    from raymed.systems.unimedvl.tokens import TextTokens

    return TextTokens.bytes() if model.path is None else TextTokens.read(Path(model.path))


RECIPE = UniMedVLRecipe
