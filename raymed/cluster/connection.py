"""Joining the Ray cluster that is there, or starting one on this machine."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.data

from raymed.cluster import local_ray
from raymed.compat.ray import HEAD_NODE
from raymed.errors import UserError
from raymed.job.departure import kept_handlers
from raymed.job.library_log import essence, take_over

log = logging.getLogger("raymed")

# Asks for a place on the head, which every cluster has: what must outlive a lost worker machine stays there.
HEAD = {HEAD_NODE: 0.001}

_OWN = "RAYMED_OWN_RAY"  # set in all processes of a Ray that `connect` started and that ends with its job


def connect(start: bool = True) -> None:
    """Join the cluster of ``RAY_ADDRESS`` (set inside a submitted job), or start Ray on this machine.

    Args:
        start: false for a plan, which needs to know only what this machine would offer.

    Raises:
        UserError: the cluster cannot be joined.
        RunError: Ray does not start here.
    """
    if ray.is_initialized() or not (start or os.environ.get("RAY_ADDRESS")):
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    # Ray Data reads Parquet footers in 32 new processes otherwise, which takes longer to start than our shards to read.
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", "2")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        with kept_handlers():
            _join(**quiet)
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process a run less: this machine is ours
        # A busy machine is slow, not broken: give processes longer than the usual 30 and 60 s to start.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
        # A run has some ten small processes beside its workers; Ray warns of that many as if they were a mistake.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
        # A trial that takes too much memory is for the system to end: Ray Tune ends a search whose trial Ray has ended.
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
        # The thread of a trial's last run may take a while to go; Ray Tune forgets a trial for which it took two seconds.
        os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")
        os.environ[_OWN] = "1"
        with kept_handlers():
            local_ray.start(**quiet)
    take_over("ray")
    _require_token()


def _join(**settings: Any) -> None:
    try:
        ray.init(**settings)
    except Exception as error:  # Ray raises many kinds, and few of them say that a token is missing
        raise UserError(
            f"the Ray cluster at {os.environ['RAY_ADDRESS']} cannot be joined. If it asks for a token, as those of "
            "docs/cluster.md do: export RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN or ~/.ray/auth_token. Ray "
            f"says: {essence(str(error))}"
        ) from error


def is_own() -> bool:
    """Whether this process is of a Ray that its job started for itself, on one machine and without a dashboard."""
    return _OWN in os.environ or not (ray.is_initialized() or os.environ.get("RAY_ADDRESS"))


def resources() -> dict[str, float]:
    """CPUs, GPUs and more of the cluster that was joined, or of the Ray that would be started on this machine."""
    if ray.is_initialized():
        have: dict[str, float] = ray.cluster_resources()
        return have
    return machines()[0]


def machines() -> list[dict[str, float]]:
    """What each machine of the cluster has, or this one would offer a Ray of its own."""
    if ray.is_initialized():
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    import torch

    return [{HEAD_NODE: 1.0, "CPU": local_ray.offered_cpus(), "GPU": float(torch.cuda.device_count())}]


def _require_token() -> None:
    """Ray asks everybody for its token unless a person has switched that off; then a line says so."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_mode & 0o077:
        token.chmod(0o600)  # Ray writes it so that everybody on the machine can read it
    if os.environ.get("RAY_AUTH_MODE") != "token":  # Ray sets it where it finds or makes a token
        log.warning("Ray works without a token: whoever reaches this machine can run code on it. Unset RAY_AUTH_MODE")


def cpus_per_gpu() -> int:
    """The CPUs that go with each GPU of a machine; on the head, where jobs and trials have their drivers, these keep one.

    Of machines that are still to come it is the mean that ``RAYMED_CAPACITY`` says.
    """
    have = resources()
    shares = [(each.get("CPU", 0) - (HEAD_NODE in each)) / each["GPU"] for each in machines() if each.get("GPU")]
    if not shares:
        will = capacity(have)
        shares = [(will["CPU"] - have.get("CPU", 0.0)) / will["GPU"]]
    return max(1, int(min(shares)))


def capacity(have: Mapping[str, float]) -> dict[str, float]:
    """CPUs and GPUs of a cluster: what it has, or what ``RAYMED_CAPACITY`` says that it can grow to; see `stated`.

    Raises:
        UserError: the variable is not understood.
    """
    will = stated()
    return {name: max(have.get(name, 0.0), will.get(name, 0.0)) for name in ("CPU", "GPU")}


def gpus_of_a_machine() -> int:
    """The most GPUs of one machine: of those that are there or, before any with a GPU is, of those to come.

    One where nobody says how many machines are to come.
    """
    there, will = max((int(each.get("GPU", 0)) for each in machines()), default=0), stated()
    return there or max(1, int(will.get("GPU", 0.0) / will.get("MACHINES", math.inf)))


def one_machine_holds(workers: int, cpus: int, gpus: float) -> bool:
    """Whether so many workers find room on one machine: on one that is there or, with GPUs, on one that is to come."""
    if gpus:
        return workers * gpus <= gpus_of_a_machine() and cpus <= cpus_per_gpu()
    return any(each.get("CPU", 0.0) - (HEAD_NODE in each) >= workers * cpus for each in machines())


def smallest_store() -> float:
    """Bytes of the smallest object store of the cluster's machines: of those that are there, and of those to come."""
    stores = [each.get("object_store_memory", 0.0) for each in machines()]
    return min(stores + [size * 2**30 for name, size in stated().items() if name == "STORE"])


def stated() -> dict[str, float]:
    """What ``RAYMED_CAPACITY`` (``CPU=72,GPU=8,MACHINES=8,STORE=8``) says that the cluster can grow to.

    CPUs and GPUs are those of all machines, the head among them; then may stand how many machines with GPUs that takes, and
    the GiB of each one's object store.

    Raises:
        UserError: the variable is not of that form.
    """
    text, pair = os.environ.get("RAYMED_CAPACITY", ""), r"(CPU|GPU|MACHINES|STORE)=\d+"
    if text and not re.fullmatch(f"{pair}(,{pair})*", text):
        raise UserError(
            f"RAYMED_CAPACITY is {text!r}: write it as CPU=72,GPU=8,MACHINES=8,STORE=8, what the cluster can grow to"
        )
    return {name: float(value) for name, value in (part.split("=") for part in text.split(",") if part)}
