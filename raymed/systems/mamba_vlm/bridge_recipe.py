"""Stage 1: encoder and bridge learn without a language model, by a loss of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from raymed.data.record import Record
from raymed.recipes.augment import generator
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.recipes.recipe import Batch, FrozenPart, Loss, LossTerm, ParameterGroup, TrainingPass
from raymed.systems.mamba_vlm.language_model import embedding_table
from raymed.systems.mamba_vlm.nnunet import read_encoder_plan
from raymed.systems.mamba_vlm.pretraining import TEMPERATURE, BridgePretraining, Objective
from raymed.systems.mamba_vlm.stage import WEIGHTS, StageRecipe
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
class BridgeRecipe(StageRecipe):
    """The recipe `mamba_vlm-bridge`. Build it with `for_data`.

    Attributes:
        objective: the loss; `contrast` reads reports by the language model's embeddings.
    """

    NAME: ClassVar[str] = "mamba_vlm-bridge"

    objective: Objective = "masked"

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], **own: Any) -> BridgeRecipe:
        return super().of_settings(settings, objective=settings["objective"], **own)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return METRICS

    @property
    def contrastive(self) -> bool:
        return self.objective == "contrast"

    def build(self) -> BridgePretraining:
        """The network with its starting weights."""
        language = self.language_model
        table = embedding_table(language) if self.objective == "contrast" else None
        width = language.config.hidden_size
        return BridgePretraining(encoder_plan(self.vision), self.vision, self.bridge, width, self.objective, table)

    @property
    def frozen_part(self) -> FrozenPart | None:
        """The encoder, where it is frozen and sees whole pictures."""
        return None if self.objective == "masked" else super().frozen_part

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """Encoder and the rest, each with and without weight decay."""
        return parameter_groups(module, module.encoder, "encoder", 1.0)  # type: ignore[arg-type]

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """The arguments of `BridgePretraining.forward`. What is hidden of a picture is drawn anew in each epoch."""
        ids = [record.id for record in records]
        reports, tensors = self.seen(records)
        if self.objective == "masked":
            side, slices = self.vision.target_side, tensors["pictures"].shape[1]
            seed, epoch = (training.seed, training.epoch) if training else (0, 0)
            keys = training.keys(ids) if training else ids
            draws = [generator(seed, epoch, key).random((slices, 1, side, side)) < HIDDEN for key in keys]
            tensors["hidden"] = torch.from_numpy(np.stack(draws))
        if self.objective == "contrast":
            tokenizer = self.language_model.tokenizer
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
        self.write(module.state_dict(), folder)

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
        return super().settings() | {"objective": self.objective}


RECIPE = BridgeRecipe


def _log_sum(scores: np.ndarray, axis: int) -> np.ndarray:
    """log of the sum of exponentials along an axis."""
    largest = scores.max(axis, keepdims=True)
    return (largest + np.log(np.exp(scores - largest).sum(axis, keepdims=True))).squeeze(axis)
