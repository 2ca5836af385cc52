"""The network that a run begins with, and whether all workers have the weights that it begins with."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from raymed.errors import CommonError, UserError
from raymed.models.adapt import compute_activations_again
from raymed.models.precision import arithmetic
from raymed.recipes.recipe import Recipe
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.start import StartWeights


class NothingToComputeAgainError(UserError):
    """A network without blocks whose activations could be computed again."""


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
    if settings.checkpoint_activations == "on" and not compute_activations_again(module):
        raise NothingToComputeAgainError(
            "no block of this network can compute its activations again: leave out train.checkpoint_activations"
        )
    return module


def check_pretrained(spec: RunSpec, reads: bool) -> None:
    """Refuse on all workers pretrained weights that are on one machine others than the run began with.

    Args:
        reads: whether this worker looks: one of each machine.

    Raises:
        CommonError: as `RunSpec.check_pretrained`.
    """
    problems, own = [""] * dist.get_world_size(), ""
    try:
        if reads:
            spec.check_pretrained()
    except CommonError as error:
        own = str(error)
    dist.all_gather_object(problems, own)
    if problem := next(filter(None, problems), ""):
        raise CommonError(problem)
