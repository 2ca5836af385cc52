"""Every preset of a classifier, and other systems' networks: forward and backward on the device against float32 on the CPU.

    python tests/gpu/run.py --parts presets

All compute the same weights and the same micro-batch, without dropout. In float32 (without TF32) the loss may differ by
0.1 % and the gradient, all of it as one vector, by 1 % of its length. In bf16, which has three digits, the loss may differ
by 5 % and the gradient's length by a factor of 2; its direction is not compared: that of a deep network with batch norms and
random weights is another one after so much rounding, on any device (resnet50 on a CPU: by 138 % of its length).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jsonargparse import auto_cli
from machine import CPU, open_device, show
from pretrain import sample
from step import phantom_records
from torch import Tensor, nn

from raymed.data.labels import LabelTable
from raymed.data.record import Record
from raymed.errors import UserError
from raymed.models import backbones, internvl_config
from raymed.models.settings import ClipModelSettings, ModelSettings
from raymed.recipes.recipe import Recipe, TrainingPass
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.lung.recipe import LungRecipe
from raymed.systems.vitp.recipe import VitpRecipe

LOSS, GRADIENT = 1e-3, 0.01  # of float32, relative
ROUNDED_LOSS, ROUNDED_LENGTH = 0.05, 2.0  # of bf16
TINY = ("tiny", "internvl-tiny")
SIZE, SLICES = 112, 8
Case = tuple[Recipe, Sequence[Record]]


@dataclass(frozen=True)
class Difference:
    """How far a device is from the CPU's float32.

    Attributes:
        loss: relative, in float32.
        gradient: as a vector, relative to its length, in float32.
        rounded_loss: relative, in bf16.
        rounded_length: of the gradient in bf16, as a share of its length.
    """

    loss: float
    gradient: float
    rounded_loss: float
    rounded_length: float

    @property
    def is_small(self) -> bool:
        exact = self.loss <= LOSS and self.gradient <= GRADIENT
        return exact and self.rounded_loss <= ROUNDED_LOSS and 1 / ROUNDED_LENGTH <= self.rounded_length <= ROUNDED_LENGTH


def main(device: str = "cuda") -> None:
    """Compute each; on a CPU two presets, and the others.

    Args:
        device: cuda, or cpu to try it.
    """
    computing = open_device(device)
    torch.backends.cudnn.allow_tf32 = False
    presets = (*backbones.PRESETS, *internvl_config.PRESETS) if device == "cuda" else TINY
    differences: dict[str, Difference] = {}
    missing: dict[str, str] = {}
    for name, case in cases(presets):
        try:
            differences[name] = compare(*case, computing)
        except UserError as error:  # weights that are a package of their own
            missing[name] = str(error)
    wrong = [name for name, difference in differences.items() if not difference.is_small]
    furthest = max(differences.values(), key=lambda difference: difference.gradient)
    rounded = max(differences.values(), key=lambda difference: difference.rounded_loss)
    lines = [
        f"{len(differences) - len(wrong)} of {len(differences)} networks alike: float32 within {furthest.gradient:.1e} of "
        f"the gradient, bf16 within {rounded.rounded_loss:.1%} of the loss"
    ]
    lines += [f"NOT ALIKE {name}: {differences[name]}" for name in wrong]
    lines += [f"left out {name}: {reason}" for name, reason in missing.items()]
    figures = {name: vars(difference) for name, difference in differences.items()}
    show("forward and backward", lines, figures, computing)
    sys.exit(bool(wrong))


def cases(presets: tuple[str, ...]) -> Iterator[tuple[str, Case]]:
    """Recipes by name, each with the records of a micro-batch, made when it is its turn."""
    labels, slices = LabelTable.open("lung"), phantom_records(SIZE, SLICES)
    for preset in (*presets, "tiny+small-cnn"):
        yield preset, (LungRecipe.for_data(labels, SIZE, ModelSettings(preset=preset)), slices)
    texts = tuple((name,) for name in labels.names)
    settings = ClipModelSettings(image_encoder="tiny", text_encoder="characters", embed_dim=32)
    clip = ClipRecipe.for_data(labels, SIZE, texts, settings)
    yield "clip", (clip, phantom_records(clip.prepared_size, SLICES))
    yield "vitp", (VitpRecipe(SIZE, model=ModelSettings(preset="internvl-tiny")), [sample(row, SIZE, 4) for row in range(4)])


def compare(recipe: Recipe, records: Sequence[Record], device: torch.device) -> Difference:
    torch.manual_seed(0)
    module = without_draws(recipe.build().train())
    if adapt_to_float32 := getattr(module, "compute_in_float32", None):  # flash-attn, where it is installed, does not
        adapt_to_float32()
    loss, gradient = passed(recipe, records, module, CPU)
    length = gradient.norm()
    exact_loss, exact = passed(recipe, records, module.to(device), device)
    rounded_loss, rounded = passed(recipe, records, copy.deepcopy(module).to(torch.bfloat16), device)
    return Difference(
        abs(exact_loss - loss) / abs(loss),
        float((exact - gradient).norm() / length),
        abs(rounded_loss - loss) / abs(loss),
        float(rounded.norm() / length),
    )


def passed(recipe: Recipe, records: Sequence[Record], module: nn.Module, device: torch.device) -> tuple[float, Tensor]:
    """Loss, and gradient in float32 on the CPU."""
    batch = recipe.encode(records, TrainingPass(0, 0))
    module.zero_grad()
    loss = recipe.compute_loss(module, batch.to(device)).mean(batch.units)
    loss.backward()
    gradients = [parameter.grad.float().cpu().flatten() for parameter in module.parameters() if parameter.grad is not None]
    return float(loss.detach()), torch.cat(gradients)


def without_draws(module: nn.Module) -> nn.Module:
    """Dropout and stochastic depth off: devices draw other numbers from one seed."""
    for part in module.modules():
        for name in ("p", "rate"):  # of torch's dropout, of raymed.models.adapt.DropPath
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return module


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
