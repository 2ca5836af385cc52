"""Which parameters are trained alike: part of a network at a learning rate of its own, weight decay where it belongs."""

from __future__ import annotations

from torch import nn

from raymed.recipes.recipe import ParameterGroup


def parameter_groups(module: nn.Module, part: nn.Module, name: str, lr_scale: float) -> list[ParameterGroup]:
    """`part` and the rest of `module`, each with and without weight decay; frozen parameters and empty groups are absent.

    Args:
        part: a part of `module` that is trained at `lr_scale` times the learning rate.
        name: what to call its groups.
    """
    inside = {id(parameter) for parameter in part.parameters()}
    members: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for owner in module.modules():
        for each, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                members.setdefault((id(parameter) in inside, _decays(owner, each, parameter)), []).append(parameter)
    return [
        ParameterGroup(
            (name if in_part else "rest") + ("" if decay else ", no decay"),
            parameters,
            lr_scale=lr_scale if in_part else 1.0,
            decay=decay,
        )
        for (in_part, decay), parameters in sorted(members.items(), key=lambda item: item[0], reverse=True)
    ]


def _decays(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices and kernels, not for norms, biases, scales, embeddings, positions, class tokens and the
    rates of state space models."""
    kept = ("token", "position_embeddings", "A_log")
    return parameter.ndim > 1 and not isinstance(owner, nn.Embedding) and not name.endswith(kept)
