"""Which type of machine a cluster asks for: one that the cloud has.

Ray's own rule takes the first type that fits for ever, also while the cloud has none of it. ``cluster.yaml`` names `score`
in ``RAY_AUTOSCALER_UTILIZATION_SCORER``; only Ray's first autoscaler (``RAY_enable_autoscaler_v2=0``) asks.
"""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

from raymed.compat.ray import usual_score

if TYPE_CHECKING:
    from raymed.compat.ray import NodeAvailabilitySummary


def score(
    node_resources: dict[str, Real],
    resources: list[dict[str, Real]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> tuple[Any, ...] | None:
    """Ray's score of a machine type for these requests, the greater the better; None where none of them fits.

    A type whose last launch failed comes after all others that fit; Ray forgets a failure after half an hour.
    """
    usual = usual_score(node_resources, resources, node_availability_summary)
    if usual is None:
        return None
    known = node_availability_summary.node_availabilities.get(node_type)
    keeps_gpus_free, *rest = usual
    return keeps_gpus_free, known is None or known.is_available, *rest
