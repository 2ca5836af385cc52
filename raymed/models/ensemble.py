"""Networks trained side by side, whose probabilities are averaged (deep ensembles, Lakshminarayanan et al. 2017,
arXiv:1612.01474): better and better calibrated than each of them, the more so the less alike they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

COMMITTEE = "ensemble"  # the model type in its config.json


class Ensemble(nn.Module):
    """Classifiers of the same classes and pictures, none of which sees another in training.

    Attributes:
        members: image classifiers (`raymed.models.vision`).
    """

    members: Any  # a module list, whose items type checkers take for plain modules

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def image_backbone(self) -> nn.Module:
        """The backbones of the members that start from pretrained weights."""
        return nn.ModuleList(member.image_backbone for member in self.members if member.pretrained)

    @property
    def description(self) -> dict[str, str]:
        """Facts to tag a run with."""
        return {"backbone": "+".join(member.description["backbone"] for member in self.members)}

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """For uint8 pictures [rows, 1 or 3, size, size] `member_logits` [members, rows, classes], and as `logits`
        [rows, classes] the logarithm of the members' mean probability; `labels` are not looked at."""
        each = torch.stack([member(pixels)["logits"] for member in self.members])
        return {"logits": each.float().log_softmax(-1).logsumexp(0), "member_logits": each}

    def export(self, folder: Path) -> None:
        """Write each member into a folder of its own, and how many there are."""
        for number, member in enumerate(self.members):
            place = member_folder(folder, number)
            place.mkdir(exist_ok=True)
            member.export(place)
        write_config(folder, len(self.members))


def write_config(folder: Path, members: int) -> None:
    """Make a folder with the exported networks of that many members an ensemble's."""
    (folder / "config.json").write_text(json.dumps({"model_type": COMMITTEE, "members": members}), "utf-8")


def member_folders(folder: Path) -> list[Path]:
    """Where the members of an exported ensemble lie; empty where the folder holds no ensemble."""
    config = folder / "config.json"
    content = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    count = content["members"] if content.get("model_type") == COMMITTEE else 0
    return [member_folder(folder, number) for number in range(count)]


def member_folder(folder: Path, number: int) -> Path:
    """Where the exported member of that number lies."""
    return folder / f"member-{number}"
