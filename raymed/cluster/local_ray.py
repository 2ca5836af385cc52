"""Ray for one job on this machine: it listens on loopback, runs nothing that nobody asks, and is tried twice."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from typing import Any

import ray

from raymed.compat.ray import kept_to_itself
from raymed.errors import RunError

log = logging.getLogger("raymed")


def offered_cpus() -> int:
    """The CPUs that it offers: one more than the machine has cores, because trial drivers and data tasks mostly wait."""
    return (os.cpu_count() or 1) + 1


def start(**settings: Any) -> None:
    """Start Ray, with one logical CPU more than the machine has cores.

    Trial drivers and data tasks mostly wait, and would otherwise keep a training worker from being placed.

    Args:
        settings: passed on to `ray.init`.

    Raises:
        RunError: it does not start, and neither does it a second time.
    """
    if sys.platform == "linux":
        # Workers of a run meet on loopback too.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "=lo")
    for last in (False, True):
        try:
            with kept_to_itself():  # "local": also beside a running head
                ray.init("local", num_cpus=offered_cpus(), include_dashboard=False, **settings)
            return
        except Exception as error:  # Ray raises just that where a process of its does not come up in time
            ray.shutdown()
            cause = str(error).strip().split("\n")[0]
            if last:
                raise RunError(
                    f"Ray did not start on this machine, twice: {cause} Its processes get some seconds each to come up; the "
                    f"load is {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs. Wait until other work has ended, and run "
                    "the same command again: what is done is kept. Ray's own account is in "
                    f"{tempfile.gettempdir()}/ray/session_latest/logs"
                ) from error
            log.warning("Ray did not start (%s): trying once more", cause)
