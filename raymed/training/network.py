"""The network that a run begins with."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from raymed.models.precision import arithmetic
from raymed.recipes.recipe import Recipe
from raymed.training.settings import TrainSettings
from raymed.training.start import StartWeights


def first_network(
    recipe: Recipe, settings: TrainSettings, seed: int, device: torch.device, start: StartWeights | None = None
) -> nn.Module:
    """A recipe's network with its starting weights, in the type it was built in.

    Args:
        start: weights to begin with, in place of the recipe's own.

    Raises:
        UserError: they are another network's.
    """
    torch.manual_seed(seed)
    module = recipe.build().to(device)
    if start is not None:  # without a process group there are no other workers
        (start.load_on_all if dist.is_initialized() else start.load_into)(module)
    adapt_to_float32 = getattr(module, "compute_in_float32", None)
    if adapt_to_float32 and arithmetic(settings.precision, device) == "fp32":
        adapt_to_float32()
    return module
