"""Stage 1: encoder and bridge learn without a language model, by a loss of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raymed.data.record import Record
from raymed.recipes.augment import generator
from raymed.recipes.exported import read_settings, write_settings
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup, TrainingPass
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.language_model import LanguageModel, embedding_table
from raymed.systems.mamba_vlm.nnunet import read_encoder_plan, write_plan
from raymed.systems.mamba_vlm.pretraining import TEMPERATURE, BridgePretraining, Objective
from raymed.systems.mamba_vlm.recipe import WEIGHTS, intensity_of, reading_of, warn_of_intensity
from raymed.systems.mamba_vlm.records import read_reports
from raymed.systems.mamba_vlm.settings import BridgeSettings, LanguageSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading
from raymed.systems.mamba_vlm.vision import encoder_plan

if TYPE_CHECKING:
    from raymed.data.prepared import Prepared
    from raymed.registry.assessment import AssessmentSettings
    from raymed.registry.candidate import Candidate
    from raymed.registry.loss_assessment import LossAssessment

HIDDEN = 0.5  # share of a picture that is hidden from `masked`
METRICS = (
    Metric("train_loss", "", "min", "{:.4f}"),
    Metric("train_token_std", "", "max", "{:.3f}"),
    Metric("train_energy", "", "max", "{:.2e}"),
    VAL_LOSS,
)
CAUTION = "The loss of stage 1 compares ways to train the bridge; what it is worth shows in the reports of stage 2."
THEN = ""


@dataclass(frozen=True)
class BridgeRecipe:
    """The recipe `mamba_vlm-bridge`. Build it with `for_data`.

    Attributes:
        reading: how pictures were read from files, their size among it.
        intensity: what the pictures' bytes mean.
        vision: the encoder, and which of its tokens are used.
        bridge: from its map to visual tokens.
        language: the language model whose width the tokens have; for `contrast`, whose embeddings reports are read by.
        objective: the loss.
        max_text_len: most tokens of a report that `contrast` reads.
    """

    reading: Reading
    intensity: Intensity = field(default_factory=Intensity)
    vision: VisionSettings = field(default_factory=VisionSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    objective: Objective = "masked"
    max_text_len: int = 512

    @classmethod
    def for_data(cls, prepared: Prepared, **settings: Any) -> BridgeRecipe:
        """The recipe for these prepared reports.

        Raises:
            UserError: they are no reports, or a model is missing.
        """
        recipe = cls(reading_of(prepared), intensity_of(prepared), **settings)
        recipe = replace(recipe, vision=recipe.vision.located(), language=recipe.language.located())
        warn_of_intensity(recipe.vision, recipe.intensity)
        LanguageModel.find(recipe.language)
        return recipe

    @classmethod
    def read(cls, folder: Path) -> BridgeRecipe:
        """The recipe that `export` wrote into a folder.

        Raises:
            UserError: the folder holds no exported model of this recipe.
        """
        settings = read_settings(folder, "mamba_vlm-bridge")
        return cls(
            reading=Reading.from_dict(settings["reading"]),
            intensity=Intensity(**settings["intensity"]),
            vision=VisionSettings(**settings["vision"]),
            bridge=BridgeSettings(**settings["bridge"]),
            language=LanguageSettings(**settings["language"]),
            objective=settings["objective"],
            max_text_len=settings["max_text_len"],
        )

    @property
    def name(self) -> str:
        return "mamba_vlm-bridge"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return METRICS

    @property
    def contrastive(self) -> bool:
        return self.objective == "contrast"

    def build(self) -> BridgePretraining:
        """The network with its starting weights."""
        language = LanguageModel.find(self.language)
        table = embedding_table(language) if self.objective == "contrast" else None
        width = language.config.hidden_size
        return BridgePretraining(encoder_plan(self.vision), self.vision, self.bridge, width, self.objective, table)

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """Encoder and the rest, each with and without weight decay."""
        return parameter_groups(module, module.encoder, "encoder", 1.0)  # type: ignore[arg-type]

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """The arguments of `BridgePretraining.forward`. What is hidden of a picture is drawn anew in each epoch."""
        ids = [record.id for record in records]
        reports = read_reports(records, self.reading.image.size, self.intensity, self.vision.reads_masks)
        tensors = {"pictures": reports.pictures}
        if reports.mask is not None:
            tensors["mask"] = reports.mask
        if self.objective == "masked":
            side, slices = self.vision.target_side, reports.pictures.shape[1]
            seed, epoch = (training.seed, training.epoch) if training else (0, 0)
            keys = training.keys(ids) if training else ids
            draws = [generator(seed, epoch, key).random((slices, 1, side, side)) < HIDDEN for key in keys]
            tensors["hidden"] = torch.from_numpy(np.stack(draws))
        if self.objective == "contrast":
            tokenizer = LanguageModel.find(self.language).tokenizer
            texts = [
                tokenizer(answer, add_special_tokens=False)["input_ids"][: self.max_text_len] for answer in reports.answers
            ]
            tensors["words"] = nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
            lengths = torch.tensor([len(text) for text in texts])
            tensors["word_mask"] = torch.arange(tensors["words"].shape[1]) < lengths[:, None]
        return Batch(tensors, {"proxy": float(len(ids))}, ids)

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        """The loss summed over the rows; logs the tokens' spread `token_std` and mean square `energy`."""
        output, rows = module(**batch.tensors), float(len(batch.ids))
        sums = {name: (output[name] * rows, rows) for name in ("token_std", "energy")}
        return Loss({"proxy": LossTerm(output["losses"].sum())}, sums)

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """For each row its loss, `losses`; for `contrast` what is compared, `picture` and `report` [rows, width]."""
        with torch.no_grad():
            output = module(**batch.tensors)
        return {name: output[name] for name in ("losses", "picture", "report") if name in output}

    def evaluate(self, predictions: dict[str, np.ndarray], records: dict[str, np.ndarray]) -> dict[str, float]:
        """`val_loss`: the mean over rows; `contrast` compares all rows with each other, however they were batched."""
        if self.objective != "contrast":
            return {"val_loss": float(predictions["losses"].astype(np.float64).mean())}
        scores = predictions["picture"].astype(np.float64) @ predictions["report"].astype(np.float64).T / TEMPERATURE
        own = np.diag(scores)
        return {"val_loss": float(((_log_sum(scores, 1) - own) + (_log_sum(scores, 0) - own)).mean() / 2)}

    def assess(self, candidate: Candidate, network: Path, prepared: Prepared, how: AssessmentSettings) -> LossAssessment:
        """By its validation loss alone."""
        from raymed.registry.loss_assessment import LossAssessment

        return LossAssessment.of(candidate, prepared, CAUTION, THEN)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write weights and `recipe.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, folder / WEIGHTS)
        write_plan(encoder_plan(self.vision), folder)
        write_settings(folder, self.settings())

    def load(self, folder: Path) -> BridgePretraining:
        """The network that `export` wrote, in evaluation mode on the CPU; it needs neither encoder nor language model.

        Raises:
            UserError: the folder is not complete.
        """
        state = load_file(folder / WEIGHTS)
        vision, width = replace(self.vision, encoder=None), len(state["bridge.proj.weight"])
        table = state.get("words.weight")
        network = BridgePretraining(read_encoder_plan(folder), vision, self.bridge, width, self.objective, table)
        network.load_state_dict(state)
        return network.eval()

    def settings(self) -> dict[str, Any]:
        return {
            "recipe": self.name,
            "reading": asdict(self.reading),
            "intensity": asdict(self.intensity),
            "vision": asdict(self.vision),
            "bridge": asdict(self.bridge),
            "language": asdict(self.language),
            "objective": self.objective,
            "max_text_len": self.max_text_len,
        }


RECIPE = BridgeRecipe


def _log_sum(scores: np.ndarray, axis: int) -> np.ndarray:
    """log of the sum of exponentials along an axis."""
    largest = scores.max(axis, keepdims=True)
    return (largest + np.log(np.exp(scores - largest).sum(axis, keepdims=True))).squeeze(axis)
