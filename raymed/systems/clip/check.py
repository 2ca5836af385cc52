"""Configurations tried out before they are trained: a micro-batch of each, of its own size, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from raymed.errors import RunError, UserError
from raymed.job.job import Outcome
from raymed.systems.clip.recipe import ClipRecipe
from raymed.systems.clip.runs import RUN, Configuration
from raymed.training.engine import division
from raymed.training.network import first_network
from raymed.training.rehearsal import Rehearsal, rehearse

GIB = 2**30


def check_configurations(configurations: Sequence[Configuration], wrong: Sequence[str], device: str) -> Outcome:
    """What a micro-batch of each configuration takes on this machine's device.

    Args:
        wrong: what is wrong with those that cannot even be built.
        device: cuda or cpu; auto is a GPU where there is one.

    Raises:
        RunError: some cannot be computed; UserError: or are wrong; the message tells of all.
    """
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    lines, figures, failed = [], dict[str, Any](), False
    for each in configurations:
        name = each.name or RUN
        try:
            parameters, rehearsal = _try(each, where)
        except (RuntimeError, UserError) as error:  # out of memory, above all
            failed = True
            lines.append(f"{name}: fails: {str(error).splitlines()[0]}")
            continue
        finally:
            if where.type == "cuda":
                torch.cuda.empty_cache()
        lines.append(_line(each, name, parameters, rehearsal))
        figures[name] = asdict(rehearsal) | {"parameters": parameters}
    lines += [f"cannot be built: {each}" for each in wrong]
    if failed or wrong:
        raise (UserError if wrong else RunError)("\n".join(["not every configuration can be trained", *lines]))
    return Outcome(
        "\n".join([*lines, f"ready: computed on {where.type}"]), {"device": where.type, "configurations": figures}
    )


def _try(configuration: Configuration, device: torch.device) -> tuple[int, Rehearsal]:
    spec, prepared = next(iter(configuration.specs.values())), configuration.prepared
    network = first_network(spec.recipe, spec.train, spec.seed, device, spec.start)
    division(spec.recipe, network, spec.train, spec.workers)
    return sum(each.numel() for each in network.parameters()), rehearse(spec, prepared, network, device)


def _line(configuration: Configuration, name: str, parameters: int, rehearsal: Rehearsal) -> str:
    spec = next(iter(configuration.specs.values()))
    assert isinstance(spec.recipe, ClipRecipe)
    memory = f"{rehearsal.activations / GIB:.2f} GiB of activations"
    if rehearsal.peak is not None:
        memory += f", {rehearsal.peak / GIB:.2f} GiB in all at most, without the optimizer"
    return (
        f"{name}: {parameters / 1e6:.1f} M parameters; {rehearsal.records} pictures of {spec.recipe.size} pixels at once in "
        f"{rehearsal.seconds:.2f} s, {memory}; loss {rehearsal.loss:.3f}"
    )
