"""What a lung network sees in each slice: the vector that its last layer decides by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.evaluation.predict import Model, predict_rows
from raymed.models.ensemble import Ensemble
from raymed.models.internvl import InternVLClassifier
from raymed.models.vision import ImageClassifier
from raymed.recipes.recipe import Batch
from raymed.systems.lung.recipe import LungRecipe


@dataclass(frozen=True)
class SliceFeatures:
    """What was seen in slices.

    Attributes:
        logits: float32 [slices, classes].
        features: float32 [slices, width]; of an ensemble those of all members, side by side.
        columns: index columns of the slices, as `predict_rows` gives them.
    """

    logits: np.ndarray
    features: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, model: Model, prepared: Prepared, rows: np.ndarray, micro_batch: int = 32, workers: int = 1
    ) -> SliceFeatures:
        """Those of rows of prepared data: one pass of the network.

        Raises:
            UserError: the model is no lung classifier, or as `predict_rows`.
        """
        recipe, module = model
        if not isinstance(recipe, LungRecipe):
            raise UserError(f"a model of {recipe.name} has no lung classifier's slices to look at: name a lung model")
        watched = _Watched(**{each.name: getattr(recipe, each.name) for each in fields(recipe)})
        seen, columns = predict_rows((watched, module), prepared, rows, micro_batch, workers)
        classes = len(recipe.codes)
        return cls(seen[:, :classes], seen[:, classes:], columns)


@dataclass(frozen=True)
class _Watched(LungRecipe):
    """The recipe of a network whose last layer is watched: behind the logits stand what they were made of."""

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        seen: list[torch.Tensor] = []
        hooks = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in _last(module)]
        try:
            logits = super().predict(module, batch)["logits"]
        finally:
            for hook in hooks:
                hook.remove()
        return {"logits": torch.cat([logits, *(each.float() for each in seen)], dim=1)}


def _last(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that decide: one, or an ensemble's, one each."""
    if isinstance(module, Ensemble):
        for member in module.members:
            yield from _last(member)
    elif isinstance(module, ImageClassifier):
        yield module.head[-1]
    elif isinstance(module, InternVLClassifier):
        yield module.network.lm_head
