"""Ray's private parts, but for those of Ray Train (`raymed/compat/ray_train.py`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray._private import ray_constants, utils

if TYPE_CHECKING:
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary as NodeAvailabilitySummary

SEEN = "2.60.0"

# Every head has this resource (ray/_common/constants.py, `HEAD_NODE_RESOURCE_NAME`): no public strategy asks for it.
HEAD_NODE = "node:__internal_head__"


@contextlib.contextmanager
def kept_to_itself() -> Iterator[None]:
    """Let Ray listen on 127.0.0.1, and start its agent without the services for a dashboard that is not there.

    It has no setting for either. It keeps off the network where it is told that it cannot be a cluster (its rule for
    laptops, ray/_private/ray_constants.py), and takes itself for the small package where the dashboard's libraries are
    missing (ray/_private/utils.py). That agent comes up at once; the whole one has 15 seconds to, a fixed port (52365) that
    another Ray may hold, and much to import.
    """
    is_cluster, missing = ray_constants.ENABLE_RAY_CLUSTER, utils.get_dashboard_dependency_error
    ray_constants.ENABLE_RAY_CLUSTER = False
    utils.get_dashboard_dependency_error = lambda: ImportError("nobody asks this Ray's dashboard")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, utils.get_dashboard_dependency_error = is_cluster, missing


def block_references(dataset: ray.data.Dataset) -> list[ray.ObjectRef]:
    """The blocks of a materialized data set, in order, as Arrow tables (ray/data/dataset.py): `to_arrow_refs`, which is
    public, starts a task for each block to convert it, though it is one already."""
    return [ref for bundle in dataset.iter_internal_ref_bundles() for ref in bundle.block_refs]


def usual_score(
    node_resources: dict[str, Real], resources: list[dict[str, Real]], availability: NodeAvailabilitySummary
) -> tuple[Any, ...] | None:
    """The autoscaler's own score of a machine type (ray/autoscaler/_private/resource_demand_scheduler.py), which a scorer
    that ``RAY_AUTOSCALER_UTILIZATION_SCORER`` names is meant to replace, not to ask."""
    from ray.autoscaler._private.resource_demand_scheduler import _resource_based_utilization_scorer

    score: tuple[Any, ...] | None = _resource_based_utilization_scorer(
        node_resources, resources, node_availability_summary=availability
    )
    return score


def autoscaling_status() -> bytes | None:
    """The first autoscaler's own report, as JSON (ray/autoscaler/_private/monitor.py); None where there is none.

    What is public prints a table."""
    from ray.experimental.internal_kv import _internal_kv_get

    status: bytes | None = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    return status
