"""A recipe that does harm while it trains, each kind as it happens in life."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from small import Small
from torch import nn

from raymed.data.record import Record
from raymed.recipes.recipe import Batch, Loss, LossTerm, TrainingPass

HARMS = {"nan": "not finite", "memory": "allocate", "hang": "stall_minutes", "exception": "a bug of the recipe's"}
"""Kind of harm -> what the reason of the failure must say."""


@dataclass(frozen=True)
class Harmful(Small):
    """Does harm in the second epoch, a loss that is not finite in the first step; none where `harm` is empty."""

    harm: str = ""

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        if training is not None and training.epoch == 1:
            if self.harm == "hang":
                threading.Event().wait()
            if self.harm == "exception":
                raise ValueError("a bug of the recipe's")
            if self.harm == "memory":
                torch.empty(2**50)
        return super().encode(records, training)

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        found = super().compute_loss(module, batch)
        if self.harm != "nan":
            return found
        return Loss({name: LossTerm(term.total * float("nan")) for name, term in found.terms.items()}, found.sums)
