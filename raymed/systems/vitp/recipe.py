"""Visual instruction pretraining (ViTP): InternVL learns to answer questions about pictures, so that its image backbone
becomes a better one.

A record is a conversation with its pictures, each already stretched to its grid of tiles. All samples of a micro-batch lie
end to end in one sequence; none sees another, nothing is padded, and nothing is cut off.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from raymed.data.record import Record
from raymed.data.tiles import TOKEN_SIDE
from raymed.errors import UserError
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import generator
from raymed.recipes.exported import read_settings, write_settings
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.recipes.recipe import TOKENS, Batch, Loss, LossTerm, ParameterGroup, TrainingPass
from raymed.systems.vitp.chat_samples import Sample, encode_sample, lay
from raymed.systems.vitp.probe import BackboneProbe
from raymed.systems.vitp.settings import ChatLossSettings
from raymed.systems.vitp.token_drop import SHUFFLED, TokenDropSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raymed.data.prepared import Prepared
    from raymed.registry.assessment import AssessmentSettings
    from raymed.registry.candidate import Candidate
    from raymed.registry.loss_assessment import LossAssessment

JPEG_QUALITY = (75, 100)  # of the recompression that `data_augment` stands for, both ends included
COUNTS = ("lengths", "learned", "questions")  # of each sample: tokens that decide shapes, so that they stay on the host
LARGEST_EXPONENT = 700.0  # a perplexity above is no number
CAUTION = "A lower loss does not prove a better backbone: compare on the task it is for."
THEN = "take its ViT out: python jobs/extract_vit.py --model {model} --tracking-uri {tracking} --out VIT"


@dataclass(frozen=True)
class VitpRecipe:
    """The recipe `vitp`. Build it with `for_data`, which checks that model and data fit.

    Attributes:
        size: side of the square tiles, in pixels.
        augmented: names of the data sets whose tiles are recompressed in training (`data_augment`).
        model: which network, and how it is adapted.
        token_drop: which image tokens are dropped in training.
        loss: the loss.
        normalisation: mean and standard deviation that pixels are normalised with.
        layout: of exported checkpoints: transformers' own (native), or InternVL's original one (internvl).
        probe: labelled pictures that the image backbone is judged on at each validation.
    """

    size: int
    augmented: tuple[str, ...] = ()
    model: ModelSettings = field(default_factory=lambda: ModelSettings(preset="internvl-tiny"))
    token_drop: TokenDropSettings = field(default_factory=TokenDropSettings)
    loss: ChatLossSettings = field(default_factory=ChatLossSettings)
    normalisation: Literal["imagenet", "clip", "siglip"] = "imagenet"
    layout: Literal["native", "internvl"] = "native"
    probe: BackboneProbe | None = None

    @classmethod
    def for_data(cls, prepared: Prepared, **settings: Any) -> VitpRecipe:
        """The recipe for these prepared conversations.

        Raises:
            UserError: they are no conversations, or were prepared for another model.
        """
        described = prepared.manifest.settings
        if "tokenizer" not in described or "datasets" not in described:
            raise UserError(f"{prepared.folder.uri} holds no conversations: prepare them with jobs/prepare_vitp.py")
        augmented = tuple(sorted(name for name, each in described["datasets"].items() if each["data_augment"]))
        recipe = cls(prepared.size, augmented, **settings)
        recipe = replace(recipe, model=recipe.model.located())
        recipe.check()
        from raymed.models.internvl_text import tokenizer_digest

        if tokenizer_digest(_tokenizer(recipe.model)) != described["tokenizer"]:
            raise UserError(
                f"{prepared.folder.uri} was prepared with another tokenizer than that of {recipe.model.origin}, so lengths "
                f"do not hold: prepare it again with --tokenizer {recipe.model.path or recipe.model.preset}"
            )
        return recipe

    def check(self) -> None:
        """Refuse a model that cannot take these pictures or settings."""
        from raymed.models import internvl

        internvl.check_settings(self.model, self.size)

    @classmethod
    def read(cls, folder: Path) -> VitpRecipe:
        """The recipe that `export` wrote into a folder.

        Raises:
            UserError: the folder holds no exported model of this recipe.
        """
        settings = read_settings(folder, "vitp")
        return cls(
            size=settings["size"],
            augmented=tuple(settings["augmented"]),
            model=ModelSettings(**settings["model"]),
            token_drop=TokenDropSettings(**settings["token_drop"]),
            loss=ChatLossSettings(**settings["loss"]),
            normalisation=settings["normalisation"],
            layout=settings["layout"],
        )

    @property
    def name(self) -> str:
        return "vitp"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("train_loss", "nats", "min", "{:.4f}"),
            VAL_LOSS,
            Metric("val_perplexity", "", "min", "{:.2f}"),
            Metric("val_choice_loss", "nats", "min", "{:.4f}", chooses_epoch=True, chooses_trial=True),
            Metric("val_choice_accuracy", "", "max", "{:.1%}"),
            *(self.probe.metrics if self.probe else ()),
        )

    @property
    def contrastive(self) -> bool:
        return False

    def build(self) -> nn.Module:
        """The network with its starting weights, from `model.path` or drawn from torch's generator."""
        from raymed.systems.vitp import network as internvl_pretrain

        return internvl_pretrain.build(self.model, self.size, self.normalisation)

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """Image backbone and the rest, each with and without weight decay."""
        return parameter_groups(module, module.image_backbone, "backbone", self.model.backbone_lr_scale)  # type: ignore[arg-type]

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """All samples end to end: the arguments of `InternVLChat.forward`, and `learned` and `questions` [samples], how many
        tokens of each sample are learned, and how many questions have declared choices.

        Raises:
            UserError: a record's pictures do not fit its text or the recipe's size.
        """
        keys = training.keys([record.id for record in records]) if training else [""] * len(records)
        samples = [self._sample(record, training, key) for record, key in zip(records, keys, strict=True)]
        arrays = lay(samples, self.loss.weight)
        arrays["choice_weights"] *= np.float32(self.loss.choice_weight)
        arrays["learned"] = np.array([sample.learned for sample in samples])
        arrays["questions"] = np.array([len(sample.questions) for sample in samples])
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        units = {"loss": float(arrays["weights"].sum())}
        return Batch(tensors, units, [record.id for record in records], COUNTS)

    def _sample(self, record: Record, training: TrainingPass | None, key: str) -> Sample:
        sample = encode_sample(record, self.size, _tokenizer(self.model))
        if training is None:
            return sample
        draws = generator(training.seed, training.epoch, key)
        image_tokens = int(sample.is_image.sum())
        if self.token_drop.mode == "guide":
            silent = self.token_drop.silence(SHUFFLED * image_tokens, draws).reshape(image_tokens, SHUFFLED)
            sample = replace(sample, silent=silent)
        else:
            sample.kept[sample.is_image] = self.token_drop.keep(image_tokens, draws)
        if record.source in self.augmented and len(sample.tiles):
            return replace(sample, tiles=np.stack([_recompressed(tile, draws) for tile in sample.tiles]))
        return sample

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        """Weighted sum over the batch's supervised tokens and declared choices; logs `token_loss`, `choice_loss`, the share
        of image tokens `dropped`."""
        output = self._run(module, batch)
        seen, image_tokens = len(batch.tensors["kept"]), len(batch.tensors["pixels"]) * (self.size // TOKEN_SIDE) ** 2
        dropped = batch.tensors["silent"].sum() / SHUFFLED if "silent" in batch.tensors else float(image_tokens - seen)
        token_losses, choice_losses = output["token_losses"], output["choice_losses"]
        sums: dict[str, tuple[torch.Tensor | float, float]] = {
            "token_loss": (token_losses.sum(), float(len(token_losses))),
            "choice_loss": (choice_losses.sum(), float(len(choice_losses))),
            "dropped": (dropped, float(image_tokens)),
            TOKENS: (float(len(batch.tensors["ids"])), 0.0),
        }
        return Loss({"loss": LossTerm(output["loss"])}, sums)

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """For each row `nll`, the summed cross-entropy of its answers, float64, and `tokens`, how many were learned; where
        choices are declared `choice_nll`, the same among them, how many `questions`, and how many are answered `right`."""
        with torch.no_grad():
            output = self._run(module, batch)
        chosen, answers = output["choice_log_probabilities"], batch.tensors["answers"]
        choice_nll = -chosen.gather(1, answers[:, None])[:, 0]
        right = chosen.argmax(1) == answers
        tokens, questions = batch.tensors["learned"], batch.tensors["questions"]

        def summed(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
            rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts.tolist())).to(values.device, non_blocking=True)
            return torch.zeros(len(counts), dtype=torch.float64, device=values.device).index_add(0, rows, values.double())

        return {
            "nll": summed(output["token_losses"], tokens),
            "tokens": tokens,
            "choice_nll": summed(choice_nll, questions),
            "right": summed(right, questions),
            "questions": questions,
        }

    def _run(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        inputs = {name: tensor for name, tensor in batch.tensors.items() if name not in ("learned", "questions")}
        return module(**inputs, smoothing=self.loss.label_smoothing)

    def evaluate(self, predictions: dict[str, np.ndarray], records: dict[str, np.ndarray]) -> dict[str, float]:
        """`val_loss`: mean cross-entropy of supervised tokens; the same for each data set, and the perplexity. Of declared
        choices the mean cross-entropy `val_choice_loss` and the share of right answers `val_choice_accuracy`."""
        nll, tokens = predictions["nll"], predictions["tokens"]
        val_loss = float(nll.sum() / tokens.sum())
        metrics = {"val_loss": val_loss, "val_perplexity": float(np.exp(min(val_loss, LARGEST_EXPONENT)))}
        sources = sorted(set(records["source"]))
        for source in sources if len(sources) > 1 else []:
            rows = records["source"] == source
            metrics[f"val_loss_{source}"] = float(nll[rows].sum() / tokens[rows].sum())
        if questions := predictions["questions"].sum():
            metrics["val_choice_loss"] = float(predictions["choice_nll"].sum() / questions)
            metrics["val_choice_accuracy"] = float(predictions["right"].sum() / questions)
        return metrics

    def assess(self, candidate: Candidate, network: Path, prepared: Prepared, how: AssessmentSettings) -> LossAssessment:
        """By its validation loss alone."""
        from raymed.registry.loss_assessment import LossAssessment

        return LossAssessment.of(candidate, prepared, CAUTION, THEN)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write weights (LoRA merged), configuration, tokenizer and `recipe.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        export = module.export if self.layout == "native" else module.export_remote_code
        export(folder)  # type: ignore[operator]
        write_settings(folder, self.settings())

    def load(self, folder: Path) -> nn.Module:
        """The network that `export` wrote, in evaluation mode on the CPU.

        Raises:
            UserError: the folder is not complete, or its weights do not fit.
        """
        from raymed.systems.vitp import network as internvl_pretrain

        return internvl_pretrain.load(folder, self.normalisation).eval()

    def settings(self) -> dict[str, Any]:
        return {
            "recipe": self.name,
            "size": self.size,
            "augmented": list(self.augmented),
            "model": asdict(self.model),
            "token_drop": asdict(self.token_drop),
            "loss": asdict(self.loss),
            "normalisation": self.normalisation,
            "layout": self.layout,
            **({"probe": self.probe.digest} if self.probe else {}),
        }


@lru_cache
def _tokenizer(model: ModelSettings) -> PreTrainedTokenizerBase:
    from raymed.models.internvl import tokenizer_of

    return tokenizer_of(model)


def _recompressed(tile: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """A tile as JPEG gives it back: uint8 [size, size, 3]."""
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=int(draws.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1)))
    return np.asarray(Image.open(file).convert("RGB"))


RECIPE = VitpRecipe
