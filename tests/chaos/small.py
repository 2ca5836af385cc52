"""The small trial of the chaos table: a network of a few hundred parameters, which learns in three epochs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from raymed.data.record import Record
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.systems.lung.recipe import LungRecipe

SIDE = 7  # pixels that a picture is reduced to


class SmallNetwork(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.image_backbone = nn.Linear(SIDE * SIDE, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        small = nn.functional.adaptive_avg_pool2d(pixels.float().mean(1) / 255, SIDE).flatten(1)
        return {"logits": self.head(torch.tanh(self.image_backbone(small)))}

    def export(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "model.safetensors")


@dataclass(frozen=True)
class Small(LungRecipe):
    """The lung recipe over such a network. It starts soon: nothing of it needs transformers."""

    def build(self) -> nn.Module:
        return SmallNetwork(len(self.codes))


@dataclass(frozen=True)
class Held(Small):
    """Trains slowly for as long as the file `hold` is there."""

    hold: str = ""

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        if training is not None and Path(self.hold).exists():
            time.sleep(0.5)
        return super().encode(records, training)


@dataclass(frozen=True)
class Full(Small):
    """Fills the file system at `disk` in the second epoch; nothing of that where `disk` is empty."""

    disk: str = ""

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        if self.disk and training is not None and training.epoch == 1:
            with contextlib.suppress(OSError), Path(self.disk, "filler").open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(2**12))
        return super().encode(records, training)

    def free(self) -> None:
        """There is room again."""
        Path(self.disk, "filler").unlink(missing_ok=True)
