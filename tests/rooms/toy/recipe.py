"""A convolution, a batch norm and a linear layer tell classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from raymed.data.labels import LabelTable
from raymed.data.record import Record
from raymed.models.norm import convert_batch_norms
from raymed.recipes.exported import read_settings, write_settings
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import CLASSIFIER
from raymed.recipes.pictures import class_labels, stack_pictures
from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup, TrainingPass


class ToyNetwork(nn.Module):
    """Averages of halves and quarters of a picture, through a batch norm."""

    description: ClassVar = {"backbone": "toy"}

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = convert_batch_norms(
            nn.Sequential(nn.Conv2d(1, 4, 4, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        )
        self.head = nn.Linear(16, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits [rows, classes] of pictures uint8 [rows, channels, height, width]."""
        grey = pixels.to(self.head.weight.dtype).mean(1, keepdim=True) / 255 - 0.3
        return self.head(self.backbone(grey).flatten(1))


@dataclass(frozen=True)
class ToyRecipe:
    """The recipe `toy`."""

    names: tuple[str, ...]
    size: int
    smoothing: float = 0.0

    name, metrics, contrastive = "toy", CLASSIFIER, False

    @classmethod
    def for_data(cls, labels: LabelTable, size: int) -> ToyRecipe:
        return cls(tuple(labels.names), size)

    @classmethod
    def read(cls, folder: Path) -> ToyRecipe:
        settings = read_settings(folder, "toy")
        return cls(tuple(settings["names"]), settings["size"], settings["smoothing"])

    def build(self) -> ToyNetwork:
        return ToyNetwork(len(self.names))

    def groups(self, module: ToyNetwork) -> list[ParameterGroup]:
        return parameter_groups(module, module.backbone, "backbone", 1.0)

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        tensors = {"pixels": torch.from_numpy(stack_pictures(records, self.size))}
        if (labels := class_labels(records, required=training is not None)) is not None:
            tensors["labels"] = labels
        return Batch(tensors, {"loss": float(len(records))}, [record.id for record in records])

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        logits, labels = module(batch.tensors["pixels"]).float(), batch.tensors["labels"]
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.smoothing)
        return Loss({"loss": LossTerm(loss)}, {"accuracy": ((logits.argmax(1) == labels).sum(), len(labels))})

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"logits": module(batch.tensors["pixels"]).float()}

    def evaluate(self, predictions: dict[str, np.ndarray], records: dict[str, np.ndarray]) -> dict[str, float]:
        from raymed.evaluation.metrics import judge_patients

        return judge_patients(predictions["logits"], records, self.names)

    def assess(self, candidate: Any, network: Path, prepared: Any, how: Any) -> Any:
        from raymed.registry.patient_assessment import assess_patients

        return assess_patients(candidate, (self, self.load(network)), prepared, how)

    def export(self, module: ToyNetwork, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(module.state_dict(), folder / "model.safetensors")
        write_settings(folder, self.settings())

    def load(self, folder: Path) -> nn.Module:
        module = self.build()
        module.load_state_dict(load_file(folder / "model.safetensors"))
        return module.eval()

    def settings(self) -> dict[str, Any]:
        return {"recipe": self.name, "names": list(self.names), "size": self.size, "smoothing": self.smoothing}


RECIPE = ToyRecipe
