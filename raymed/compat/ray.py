"""Ray's private parts, but for those of Ray Train (`raymed/compat/ray_train.py`)."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from numbers import Real
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray._private import ray_constants, utils
from ray._private.node import Node

if TYPE_CHECKING:
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary as NodeAvailabilitySummary
    from ray.autoscaler._private.updater import NodeUpdater

SEEN = "2.60.0"

# Every head has this resource (ray/_common/constants.py, `HEAD_NODE_RESOURCE_NAME`): no public strategy asks for it.
HEAD_NODE = "node:__internal_head__"


@contextlib.contextmanager
def kept_to_itself() -> Iterator[None]:
    """Let Ray listen on 127.0.0.1, and start without what serves nobody here: its agent's services for a dashboard, the
    autoscaler, and the monitor of logs, which looks at every worker's file ten times a second for drivers that want to know.

    It has no setting for any of them. It keeps off the network where it is told that it cannot be a cluster (its rule for
    laptops, ray/_private/ray_constants.py), and takes itself for the small package where the dashboard's libraries are
    missing (ray/_private/utils.py). That agent comes up at once; the whole one has 15 seconds to, a fixed port (52365) that
    another Ray may hold, and much to import. The other two are started by methods of its node (ray/_private/node.py).
    """
    parts: tuple[tuple[Any, str, Any], ...] = (
        (ray_constants, "ENABLE_RAY_CLUSTER", False),
        (utils, "get_dashboard_dependency_error", lambda: ImportError("nobody asks this Ray's dashboard")),
        (Node, "start_monitor", lambda node: None),
        (Node, "start_log_monitor", lambda node: None),
    )
    with contextlib.ExitStack() as as_they_were:
        for owner, name, part in parts:
            as_they_were.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, part)
        yield


def block_references(dataset: ray.data.Dataset) -> tuple[list[ray.ObjectRef], list[int]]:
    """The blocks of a materialized data set, in order, as Arrow tables, and how many rows each has (ray/data/dataset.py):
    `to_arrow_refs`, which is public, starts a task for each block to convert it, though it is one already."""
    bundles = list(dataset.iter_internal_ref_bundles())
    references = [ref for bundle in bundles for ref in bundle.block_refs]
    return references, [int(metadata.num_rows or 0) for bundle in bundles for metadata in bundle.metadata]


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


def watch_set_ups(ended: Callable[[str, float, str], None]) -> None:
    """Have the first autoscaler, in its own process, tell how each set-up of a new machine ended: the machine's type, when
    that began, and what failed; empty where nothing did. It notes a failure for a machine that it ends right then, and asks
    for another one for ever (ray/autoscaler/_private/updater.py and autoscaler.py)."""
    from ray.autoscaler._private.updater import NodeUpdater
    from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

    usual = NodeUpdater.do_update

    def do_update(updater: NodeUpdater) -> None:
        if updater.for_recovery:  # Ray is started again on a machine that was lost
            return usual(updater)
        kind, began, typed = updater.provider.node_tags(updater.node_id)[TAG_RAY_USER_NODE_TYPE], time.monotonic(), ""
        run = updater.cmd_runner.run

        def noted(command: str | None = None, *words: Any, **named: Any) -> Any:
            nonlocal typed
            typed = command or ""
            return run(command, *words, **named)

        updater.cmd_runner.run = noted
        try:
            usual(updater)
        except BaseException as error:
            if not updater.provider.is_terminated(updater.node_id):  # the cloud may take back what is being set up
                ended(kind, began, _failure(typed, error))
            raise
        return ended(kind, began, "")

    NodeUpdater.do_update = do_update  # type: ignore[method-assign]


def _failure(typed: str, error: BaseException) -> str:
    """The command that failed on a machine, in its first words, and its status."""
    status: int | None = None
    cause: BaseException | None = error
    while cause is not None and status is None:
        status = cause.returncode if isinstance(cause, subprocess.CalledProcessError) else getattr(cause, "code", None)
        cause = cause.__context__
    words = re.sub(r"^export RAY_HEAD_IP=\S+; ", "", " ".join(typed.split()))  # of Ray's own
    shown = words if len(words) <= 80 else f"{words[:80]}..."
    return f"`{shown}` ended with status {status}" if status is not None else f"`{shown}`: {error}"


def tell(key: bytes, value: bytes) -> None:
    """Keep a value where every process of this cluster finds it, as the autoscaler keeps its report."""
    from ray.experimental.internal_kv import _internal_kv_initialized, _internal_kv_put

    if _internal_kv_initialized():
        _internal_kv_put(key, value, overwrite=True)


def told(key: bytes) -> bytes | None:
    """What `tell` keeps; None where it has kept nothing."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key)
    return value
