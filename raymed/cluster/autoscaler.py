"""Which type of machine a cluster asks for: one that the cloud has. And which are on their way.

Ray's own rule takes the first type that fits for ever, also while the cloud has none of it. ``cluster.yaml`` names `score`
in ``RAY_AUTOSCALER_UTILIZATION_SCORER``; only Ray's first autoscaler (``RAY_enable_autoscaler_v2=0``) asks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from raymed.compat.ray import autoscaling_status, usual_score

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


def machines_to_come() -> str:
    """What the autoscaler waits for, and what the cloud refused, in its own words; empty where there is no autoscaler."""
    status = autoscaling_status()
    return "; ".join(in_words(json.loads(status).get("autoscaler_report") or {})) if status else ""


def in_words(report: Mapping[str, Any]) -> Iterator[str]:
    """What a report of Ray's autoscaler says that a person wants to know, a part a line."""
    pending = Counter(node_type for _, node_type, _ in report.get("pending_nodes", ()))
    pending.update(report.get("pending_launches", {}))
    if pending:
        yield "on their way: " + ", ".join(f"{count} x {node_type}" for node_type, count in sorted(pending.items()))
    for node_type, record in report.get("node_availability_summary", {}).get("node_availabilities", {}).items():
        if refusal := record["unavailable_node_information"]:
            yield f"no {node_type}: {refusal['category']}: {refusal['description']}"
    if failed := Counter(node_type for _, node_type in report.get("failed_nodes", ())):
        yield "did not start: " + ", ".join(f"{count} x {node_type}" for node_type, count in sorted(failed.items()))
