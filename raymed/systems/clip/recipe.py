"""The CLIP classifier: a picture is given the class whose text it resembles most, a patient the mean of its pictures.

An image tower and a text tower map pictures and class texts into one space, where their cosine over a learned temperature is
the logit. A model can therefore be asked about other classes than it was trained on: give their texts to `with_texts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymed.data.record import Record
from raymed.errors import UserError
from raymed.models.ensemble import Ensemble, member_folders
from raymed.models.settings import ClipModelSettings
from raymed.recipes.augment import generator, varied
from raymed.recipes.exported import read_settings, write_settings
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import CLASSIFIER, Metric
from raymed.recipes.pictures import class_labels, stack_features, stack_pictures
from raymed.recipes.recipe import Batch, FrozenPart, Loss, LossTerm, ParameterGroup, TrainingPass
from raymed.systems.clip.crops import crop, draw_crops, prepared_size, scale_down
from raymed.systems.clip.settings import ClipAugmentSettings, ClipLossSettings

if TYPE_CHECKING:
    from raymed.data.labels import LabelTable
    from raymed.data.prepared import Prepared
    from raymed.registry.assessment import AssessmentSettings
    from raymed.registry.candidate import Candidate
    from raymed.registry.patient_assessment import PatientAssessment


@dataclass(frozen=True)
class ClipRecipe:
    """The recipe `clip`. Build it with `for_data`, which checks that model, texts and data fit.

    Attributes:
        names: the classes' names, in the label table's order.
        texts: the classes' texts in the same order, one or several prompts each.
        size: side of the square pictures that the network sees; the data are prepared at `prepared_size`, a tenth larger.
        model: which towers, and how they are adapted.
        loss: what they are trained on.
        augment: how training pictures are varied.
    """

    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    size: int
    model: ClipModelSettings = field(default_factory=ClipModelSettings)
    loss: ClipLossSettings = field(default_factory=ClipLossSettings)
    augment: ClipAugmentSettings = field(default_factory=ClipAugmentSettings)

    @classmethod
    def for_data(
        cls,
        labels: LabelTable,
        size: int,
        texts: Sequence[Sequence[str]],
        model: ClipModelSettings | None = None,
        loss: ClipLossSettings | None = None,
        augment: ClipAugmentSettings | None = None,
    ) -> ClipRecipe:
        """The recipe for data with these labels.

        Args:
            size: side of the pictures that the network sees, not that of the prepared ones.
            texts: one or several prompts per class, in the order of the label table.

        Raises:
            UserError: the texts do not fit the classes, or the model cannot take these texts, pictures or settings.
        """
        recipe = cls(
            names=tuple(labels.names),
            texts=_checked_texts(labels.names, texts),
            size=size,
            model=(model or ClipModelSettings()).located(),
            loss=loss or ClipLossSettings(),
            augment=augment or ClipAugmentSettings(),
        )
        from raymed.systems.clip import network  # the driver that only holds a recipe does without transformers

        network.check(recipe.model, recipe.names, recipe.texts, recipe.size)
        return recipe

    @classmethod
    def read(cls, folder: Path) -> ClipRecipe:
        """The recipe that `export` wrote into a folder.

        Raises:
            UserError: the folder holds no exported CLIP classifier.
        """
        return cls.from_settings(read_settings(folder, "clip"))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ClipRecipe:
        """The recipe whose `settings` these are."""
        return cls(
            names=tuple(settings["names"]),
            texts=tuple(tuple(prompts) for prompts in settings["texts"]),
            size=settings["size"],
            model=ClipModelSettings(**settings["model"]),
            loss=ClipLossSettings(**settings["loss"]),
            augment=ClipAugmentSettings(**settings["augment"]),
        )

    def with_texts(self, names: Sequence[str], texts: Sequence[Sequence[str]]) -> ClipRecipe:
        """The same recipe for other classes: its `load` gives the trained network asked about these texts (zero-shot).

        Raises:
            UserError: the texts do not fit the names.
        """
        return replace(self, names=tuple(names), texts=_checked_texts(names, texts))

    @property
    def name(self) -> str:
        return "clip"

    @property
    def prepared_size(self) -> int:
        """Side of the pictures in prepared data, in pixels."""
        return prepared_size(self.size)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (*CLASSIFIER, Metric("val_acc", "%", "max", "{:.1f} %", chooses_epoch=True, chooses_trial=True))

    @property
    def contrastive(self) -> bool:
        return self.loss.kind == "clip" or self.loss.text_to_image > 0

    def build(self) -> nn.Module:
        """The towers with their starting weights: local ones where the settings name them, else from torch's generator."""

        from raymed.systems.clip import network

        return network.build(self.model, self.names, self.texts, self.size)

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """Text encoder and the rest, each with and without weight decay."""
        return parameter_groups(module, module.text_encoder, "text encoder", self.model.text_lr_scale)  # type: ignore[arg-type]

    @property
    def frozen_part(self) -> FrozenPart | None:
        """The image encoder, where it is frozen."""
        model = self.model
        settings = {"encoder": model.image_encoder, "weights": model.image_weights, "size": self.size}
        return FrozenPart("image_encoder", settings, self.augment.preset != "none") if model.freeze_image else None

    def features(self, module: nn.Module, batch: Batch) -> Tensor:
        """What the image encoder makes of pictures, [rows, width]."""
        return module.image_features(batch.tensors["pixels"])  # type: ignore[operator]

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """Pictures uint8 [rows, 1 or 3, size, size] as `pixels`, or what the frozen image encoder made of them, float32
        [rows, width], as `features`; and `labels` [rows] where every record has one.

        For the clip loss also `prompts` [rows]: the number of one of the class's prompts, counted over all classes, drawn
        from (seed, epoch, record id).

        Raises:
            UserError: a record to train on has no label, or a record does not hold one picture of `prepared_size`.
        """
        ids = [record.id for record in records]
        labels = class_labels(records, required=training is not None)
        if (features := stack_features(records)) is not None:
            tensors = {"features": torch.from_numpy(features)}
        else:
            tensors = {"pixels": torch.from_numpy(stack_pictures(records, self.prepared_size))}
        if labels is not None:
            tensors["labels"] = labels
        if training is not None and labels is not None and self.loss.kind == "clip":
            tensors["prompts"] = self._draw_prompts(ids, labels.tolist(), training)
        batch = Batch(tensors, {"loss": float(len(records))}, ids)
        if features is not None:
            return batch
        if training is None or self.augment.preset == "none":
            return replace(batch, tensors=tensors | {"pixels": scale_down(tensors["pixels"], self.size)})
        keys = training.keys(ids)
        choices = draw_crops(keys, self.prepared_size, self.size, self.augment, training.seed, training.epoch)
        return varied(batch, choices, partial(crop, size=self.size))

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        """Summed over the batch's pictures; logs their `accuracy` and the learned `temperature`.

        `class` depends on each picture alone. The contrastive directions see the pictures of the micro-batch on this worker
        as negatives and no others: a whole group of `train.norm_group`.
        """
        labels = batch.tensors["labels"]
        output = module(**_seen(batch))
        logits = output["logits"]
        same = labels[:, None] == labels[None]
        if self.loss.kind == "clip":
            pairs = output["prompt_logits"][:, batch.tensors["prompts"]]
            rows = (spread_cross_entropy(pairs, same) + spread_cross_entropy(pairs.T, same)) / 2
        else:
            rows = F.cross_entropy(logits, labels, reduction="none")
            if self.loss.text_to_image:
                rows = rows + self.loss.text_to_image * spread_cross_entropy(logits[:, labels].T, same)
        right = (logits.argmax(1) == labels).sum()
        logged = {"accuracy": right, "temperature": len(labels) / output["scale"].detach()}
        return Loss({"loss": LossTerm(rows.sum())}, {name: (value, len(labels)) for name, value in logged.items()})

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`logits` float32 [rows, classes]; their softmax is the class probability. `module` is in evaluation mode."""
        with torch.no_grad():
            return {"logits": module(**_seen(batch))["logits"].float()}

    def evaluate(self, predictions: dict[str, np.ndarray], records: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics per patient as for every classifier, and `val_acc`: percentage of pictures that are given their class."""
        from raymed.evaluation.metrics import judge_patients

        judged = judge_patients(predictions["logits"], records, self.names)
        return judged | {"val_acc": 100 * judged["slice_accuracy"]}

    def assess(self, candidate: Candidate, network: Path, prepared: Prepared, how: AssessmentSettings) -> PatientAssessment:
        """Per patient, by the declared classes."""
        from raymed.registry.patient_assessment import assess_patients

        return assess_patients(candidate, (self, self.load(network)), prepared, how)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write weights, the towers' configurations, the tokenizer, and `recipe.json` with the class texts."""
        folder.mkdir(parents=True, exist_ok=True)
        module.export(folder)  # type: ignore[operator]
        write_settings(folder, self.settings())

    def load(self, folder: Path) -> nn.Module:
        """The network that `export` wrote, or the mean of several, asked about this recipe's texts, in evaluation mode on
        the CPU.

        Raises:
            UserError: the folder is not complete, its weights do not fit, or it cannot take the texts.
        """

        from raymed.systems.clip import network

        if members := member_folders(folder):
            return Ensemble([network.load(member, self.names, self.texts, self.size) for member in members]).eval()
        return network.load(folder, self.names, self.texts, self.size).eval()

    def settings(self) -> dict[str, Any]:
        return {
            "recipe": self.name,
            "names": list(self.names),
            "texts": [list(prompts) for prompts in self.texts],
            "size": self.size,
            "model": asdict(self.model),
            "loss": asdict(self.loss),
            "augment": asdict(self.augment),
        }

    def _draw_prompts(self, ids: Sequence[str], labels: Sequence[int], training: TrainingPass) -> Tensor:
        firsts = np.cumsum([0, *(len(prompts) for prompts in self.texts)])
        return torch.tensor(
            [
                int(
                    firsts[label]
                    + generator(training.seed, training.epoch, f"prompt/{each}").integers(len(self.texts[label]))
                )
                for each, label in zip(training.keys(ids), labels, strict=True)
            ]
        )


def spread_cross_entropy(logits: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy [rows] of logits [rows, columns] against targets that are spread evenly over the columns marked `same`.

    Where all columns of a class are alike, its value and its gradient are those of a target on any one of them.

    Args:
        same: bool [rows, columns], at least one column per row.
    """
    targets = same / same.sum(1, keepdim=True)
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(1)


def _checked_texts(names: Sequence[str], texts: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The texts, stripped: one or more for each of at least two classes, none empty and none used twice."""
    if len(names) < 2:
        raise UserError(f"a classifier needs at least two classes; there are {len(names)}")
    if len(texts) != len(names):
        raise UserError(f"there are texts for {len(texts)} classes, but {len(names)} classes: {', '.join(names)}")
    owner: dict[str, str] = {}
    checked = []
    for name, prompts in zip(names, texts, strict=True):
        stripped = tuple(prompt.strip() for prompt in prompts)
        if not stripped or not all(stripped):
            raise UserError(f"the class {name!r} has an empty text: write what its pictures show")
        for prompt in stripped:
            if prompt in owner:
                raise UserError(
                    f"the text {prompt!r} stands for {owner[prompt]!r} and again for {name!r}: write another one"
                )
            owner[prompt] = name
        checked.append(stripped)
    return tuple(checked)


def _seen(batch: Batch) -> dict[str, Tensor]:
    """What the network sees of a batch."""
    return {name: batch.tensors[name] for name in ("pixels", "features") if name in batch.tensors}


RECIPE = ClipRecipe
