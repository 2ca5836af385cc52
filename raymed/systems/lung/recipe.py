"""The lung classifier: one slice in, logits over the declared classes out; patients are judged by their mean probability.

Two model families share it. `internvl` answers the prompt ``<cls>: 0|1|2|3.`` and is trained on the answer (language loss)
and on the softmax restricted to the choices' tokens (choice loss). `vision` is an image backbone with a linear head, trained
on the choice loss alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from raymed.data.record import Record
from raymed.errors import UserError
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import draw, varied, vary
from raymed.recipes.exported import read_settings, write_settings
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import CLASSIFIER, Metric
from raymed.recipes.pictures import class_labels, stack_features, stack_pictures
from raymed.recipes.recipe import TOKENS, Batch, FrozenPart, Loss, LossTerm, ParameterGroup, TrainingPass
from raymed.recipes.settings import AugmentSettings
from raymed.systems.lung.settings import LossSettings

if TYPE_CHECKING:
    from raymed.data.labels import LabelTable
    from raymed.data.prepared import Prepared
    from raymed.registry.assessment import AssessmentSettings
    from raymed.registry.candidate import Candidate
    from raymed.registry.patient_assessment import PatientAssessment


@dataclass(frozen=True)
class LungRecipe:
    """The recipe `lung`. Build it with `for_data`, which checks that model and data fit.

    Attributes:
        codes: the classes' codes, which are the choices of the prompt, in the label table's order.
        names: the classes' names, in the same order.
        size: side of the square pictures, in pixels.
        model: which network, and how it is adapted.
        loss: weights of the loss.
        augment: how training pictures are varied.
    """

    codes: tuple[str, ...]
    names: tuple[str, ...]
    size: int
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)

    @classmethod
    def for_data(
        cls,
        labels: LabelTable,
        size: int,
        model: ModelSettings | None = None,
        loss: LossSettings | None = None,
        augment: AugmentSettings | None = None,
    ) -> LungRecipe:
        """The recipe for data with these labels and picture size.

        Raises:
            UserError: fewer than two classes, or the model cannot take these classes, pictures or settings.
        """
        if len(labels.classes) < 2:
            raise UserError(f"a classifier needs at least two classes; the label table has {len(labels.classes)}")
        recipe = cls(
            codes=tuple(labels.codes),
            names=tuple(labels.names),
            size=size,
            model=(model or ModelSettings()).located(),
            loss=loss or LossSettings(),
            augment=augment or AugmentSettings(),
        )
        recipe.check()
        return recipe

    def check(self) -> None:
        """Refuse a model that cannot take these classes, pictures or settings."""
        from raymed.models import classifiers  # the driver that only holds a recipe does without transformers

        classifiers.check(self.model, self.codes, self.size)

    @classmethod
    def read(cls, folder: Path) -> LungRecipe:
        """The recipe that `export` wrote into a folder.

        Raises:
            UserError: the folder holds no exported lung model.
        """
        settings = read_settings(folder, "lung")
        return cls(
            codes=tuple(settings["codes"]),
            names=tuple(settings["names"]),
            size=settings["size"],
            model=ModelSettings(**settings["model"]),
            loss=LossSettings(**settings["loss"]),
            augment=AugmentSettings(**settings["augment"]),
        )

    @property
    def name(self) -> str:
        return "lung"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return CLASSIFIER

    @property
    def contrastive(self) -> bool:
        return False

    def build(self) -> nn.Module:
        """The network with its starting weights, from `model.path` or drawn from torch's generator."""
        from raymed.models import classifiers

        return classifiers.build(self.model, self.codes, self.size)

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """Image backbone and the rest, each with and without weight decay."""
        return parameter_groups(module, module.image_backbone, "backbone", self.model.backbone_lr_scale)  # type: ignore[arg-type]

    @property
    def frozen_part(self) -> FrozenPart | None:
        """The image backbone, where it is one and no part of it is trained."""
        model = self.model
        if not model.freeze_vision or model.trainable_blocks:
            return None
        from raymed.models import classifiers

        if (name := classifiers.frozen_backbone(model)) is None:
            return None
        settings = {"model": model.origin, "layer": model.vision_layer, "attention": model.attention, "size": self.size}
        return FrozenPart(name, settings, varied=not self.augment.off)

    def features(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """What the image backbone makes of pictures, [rows, ...]."""
        return module.features(batch.tensors["pixels"])  # type: ignore[operator]

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """Pictures uint8 [rows, 1 or 3, size, size] as `pixels`, or what the frozen backbone made of them, float32
        [rows, ...], as `features`; and `labels` [rows] where every record has one.

        Raises:
            UserError: a record to train on has no label, or a record does not hold one picture of the recipe's size.
        """
        ids = [record.id for record in records]
        labels = class_labels(records, required=training is not None)
        if (features := stack_features(records)) is not None:
            tensors = {"features": torch.from_numpy(features)}
        else:
            tensors = {"pixels": torch.from_numpy(stack_pictures(records, self.size))}
        if labels is not None:
            tensors["labels"] = labels
        batch = Batch(tensors, {"loss": float(len(records))}, ids)
        if training is None or features is not None:
            return batch
        choices = draw(training.keys(ids), self.size, self.augment, training.seed, training.epoch)
        return varied(batch, choices, vary)

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        """Summed over the batch's slices; logs `loss`'s parts and the slices' `accuracy`."""
        weights, labels = self.loss, batch.tensors["labels"]
        output = module(**(batch.tensors if weights.lm_weight else _seen(batch)))
        logits = output["logits"].float()
        member_logits = output.get("member_logits", logits[None]).float()  # of an ensemble each learns by itself
        choice = F.cross_entropy(
            member_logits.flatten(0, 1),
            labels.repeat(len(member_logits)),
            label_smoothing=weights.label_smoothing,
            reduction="sum",
        ) / len(member_logits)
        total = weights.choice_weight * choice
        logged = {"choice_loss": choice, "accuracy": (logits.argmax(1) == labels).sum()}
        if "language_loss" in output:
            language = output["language_loss"].sum()
            total = total + weights.lm_weight * language
            logged["language_loss"] = language
        sums: dict[str, tuple[torch.Tensor | float, float]] = {
            name: (value.detach(), len(labels)) for name, value in logged.items()
        }
        if "tokens" in output:
            sums[TOKENS] = (output["tokens"].sum(), 0.0)
        return Loss({"loss": LossTerm(total)}, sums)

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """`logits` float32 [rows, classes]; their softmax is the class probability. `module` is in evaluation mode."""
        with torch.no_grad():
            output = module(**_seen(batch))
        return {"logits": output["logits"].float()}

    def evaluate(self, predictions: dict[str, np.ndarray], records: dict[str, np.ndarray]) -> dict[str, float]:
        from raymed.evaluation.metrics import judge_patients

        return judge_patients(predictions["logits"], records, self.names)

    def assess(self, candidate: Candidate, network: Path, prepared: Prepared, how: AssessmentSettings) -> PatientAssessment:
        """Per patient, by the declared classes."""
        from raymed.registry.patient_assessment import assess_patients

        return assess_patients(candidate, (self, self.load(network)), prepared, how)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write weights (LoRA merged), the networks' configuration, `recipe.json` and, for internvl, the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        module.export(folder)  # type: ignore[operator]
        write_settings(folder, self.settings())

    def load(self, folder: Path) -> nn.Module:
        """The network that `export` wrote, in evaluation mode on the CPU.

        Raises:
            UserError: the folder is not complete, or its weights do not fit.
        """
        from raymed.models import classifiers

        return classifiers.load(folder, self.codes, self.size).eval()

    def settings(self) -> dict[str, Any]:
        return {
            "recipe": self.name,
            "codes": list(self.codes),
            "names": list(self.names),
            "size": self.size,
            "model": asdict(self.model),
            "loss": asdict(self.loss),
            "augment": asdict(self.augment),
        }


def _seen(batch: Batch) -> dict[str, torch.Tensor]:
    """What the network sees of a batch, but for the labels."""
    return {name: tensor for name, tensor in batch.tensors.items() if name != "labels"}


RECIPE = LungRecipe
