"""A setting of a run by the name of its option: train.lr, slices.per_patient, or one of the recipe's."""

from __future__ import annotations

import dataclasses
from typing import Any

from raymed.training.spec import RunSpec
from raymed.tuning.space import get_setting, with_setting


def run_setting(spec: RunSpec, path: str) -> Any:
    """Its value.

    Raises:
        UserError: there is no such setting.
    """
    return get_setting(*_run_part(spec, path))


def with_run_setting(spec: RunSpec, path: str, value: Any) -> RunSpec:
    """A copy of the run in which it is replaced."""
    part, own = _run_part(spec, path)
    changed = with_setting(part, own, value)
    if part is spec:
        return changed
    return dataclasses.replace(spec, **{"sampling" if part is spec.sampling else "recipe": changed})


def _run_part(spec: RunSpec, path: str) -> tuple[Any, str]:
    """What of a run a setting belongs to, and its path there."""
    first, _, rest = path.partition(".")
    if first == "train":
        return spec, path
    return (spec.sampling, rest) if first == spec.sampling.option else (spec.recipe, path)
