"""What is logged of training: (sum, count) pairs, which add up over micro-batches, workers and steps, and their means."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from raymed.recipes.recipe import Loss

LOSS = "loss"  # "loss/NAME": a term's weighted sum, and its units


def sums_of(loss: Loss, units: Mapping[str, float]) -> dict[str, tuple[torch.Tensor | float, float]]:
    """A micro-batch's (sum, count) by name: of each term of its loss, and of what its recipe logs.

    Where the loss has several terms, each is logged by its name too, without its weight.

    Args:
        units: of each term in the micro-batch.
    """
    sums: dict[str, tuple[torch.Tensor | float, float]] = {}
    for name in sorted(units):
        term = loss.terms.get(name)
        sums[f"{LOSS}/{name}"] = (term.weight * term.total if term else 0.0, units[name])
        if len(units) > 1:
            sums[name] = (term.total if term else 0.0, units[name])
    return sums | loss.sums


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The mean of each name that counted anything, and ``loss``, the sum of its terms' means, each over its own units."""
    every = {name: total / count for name, (total, count) in sums.items() if count}
    terms = [mean for name, mean in every.items() if name.startswith(f"{LOSS}/")]
    return {LOSS: sum(terms)} | {name: mean for name, mean in every.items() if not name.startswith(f"{LOSS}/")}
