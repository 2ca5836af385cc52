"""Which class texts are better: the same trained network asked about several, judged on the same patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import difference_interval
from raymed.evaluation.patients import Patients, softmax, to_patients
from raymed.evaluation.predict import Model, predict_rows
from raymed.evaluation.scores import overall
from raymed.systems.clip.checkpoint import read
from raymed.systems.clip.options import ClipOptions
from raymed.systems.clip.recipe import ClipRecipe


@dataclass(frozen=True, eq=False)
class Texts:
    """Class texts, and how well patients are told apart by them.

    Attributes:
        name: what to call them.
        loss, accuracy, balanced_accuracy: over the patients.
        nearest: by class, the class whose text lies nearest to its own in the common space, and the cosine of the two.
        patients: what is said of each.
        more_loss: by how much the loss is above that of the first texts, over the same patients; None of the first.
        more_accurate: by how much the accuracy is.
    """

    name: str
    loss: float
    accuracy: float
    balanced_accuracy: float
    nearest: Mapping[str, tuple[str, float]]
    patients: Patients
    more_loss: Estimate | None = None
    more_accurate: Estimate | None = None

    @classmethod
    def of(cls, name: str, model: Model, prepared: Prepared, rows: np.ndarray, first: Texts | None, seed: int) -> Texts:
        """Args: model: asked about the texts; rows: of the data, int64 [rows].

        Raises:
            UserError: the texts are of other classes than the data.
        """
        recipe: Any = model[0]
        names, asked = prepared.labels.names, list(recipe.names)
        if sorted(asked) != sorted(names):
            raise UserError(f"{name} has texts for {', '.join(asked)}, and the data have the classes {', '.join(names)}")
        logits, columns = predict_rows(model, prepared, rows)
        probabilities = softmax(logits[:, [asked.index(each) for each in names]])
        patients = to_patients(probabilities, columns["patient"], columns["label"], columns["source"])
        figures = overall(patients.labels, patients.probabilities)
        right = patients.decisions == patients.labels
        return cls(
            name,
            figures["loss"],
            figures["accuracy"],
            figures["balanced_accuracy"],
            nearest(model[1], asked),
            patients,
            None if first is None else difference_interval(patients, first.patients, seed=seed),
            None
            if first is None
            else intervals.difference_of_shares(right, first.patients.decisions == first.patients.labels),
        )

    def lines(self) -> list[str]:
        """For a terminal."""
        accuracy, balanced = self.accuracy, self.balanced_accuracy
        text = [f"{self.name}: loss {self.loss:.4f}, accuracy {accuracy:.3f}, balanced accuracy {balanced:.3f}"]
        if self.more_loss is not None:
            text.append(f"  against the first: loss {self.more_loss} more, accuracy {self.more_accurate} more")
        for own, (other, cosine) in self.nearest.items():
            text.append(f"  {own}: nearest is the text of {other} (cosine {cosine:.3f})")
        return text

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "nearest": {own: list(pair) for own, pair in self.nearest.items()},
            "more_loss": self.more_loss and vars(self.more_loss),
            "more_accurate": self.more_accurate and vars(self.more_accurate),
        }


def validated(checkpoint: Path, options: ClipOptions) -> tuple[Prepared, np.ndarray]:
    """The prepared data of a ``.pth`` file's run, and the rows that it was validated on, ascending.

    Args:
        options: say where the images are and whose; what the file says goes before the rest.

    Raises:
        UserError: the data are others than those it was trained on.
    """
    content = read(checkpoint)
    config, seed = content["config"], content["config"]["random_state"]
    given = {each.name: getattr(options, each.name) for each in fields(ClipOptions)}
    given |= {"size": config["img_size"], "seed": seed, "n_splits": config["n_splits"], "folds": config["folds"]}
    given |= {"data": options.data or config["data"], "model": ClipRecipe.from_settings(content["recipe"]).model}
    prepared = ClipOptions(**given).prepared()
    if prepared.digest != config["data_digest"]:
        raise UserError(f"{checkpoint} was trained on other data: give its --data-dir, --split and --patients")
    fold = config["fold"] - 1 if config["use_cv"] else config["fold"]
    slices = SliceSettings.read(config["slices"])
    return prepared, slices.choose(prepared, prepared.rows("val", fold), seed, None)


def nearest(module: torch.nn.Module, names: Sequence[str]) -> dict[str, tuple[str, float]]:
    """By class, the other class whose text is most like its own, and the cosine; several texts of a class stand for it by
    the direction of their mean.

    Args:
        module: a `ClipClassifier`.
        names: of its classes.
    """
    network: Any = module
    with torch.no_grad():
        prompts = network.prompt_features()
        classes = torch.zeros(len(names), prompts.shape[1], device=prompts.device)
        classes = F.normalize(classes.index_add(0, network.owner, prompts), dim=1)
        cosines = classes @ classes.T
    cosines.fill_diagonal_(-2)
    values, places = cosines.max(1)
    return {own: (names[place], value) for own, place, value in zip(names, places.tolist(), values.tolist(), strict=True)}
