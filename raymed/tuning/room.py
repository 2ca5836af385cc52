"""Room for a search's runs: what each takes of the cluster as it is now, and how many run at once."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raymed.cluster import connection as cluster
from raymed.cluster.connection import capacity, cpus_per_gpu, gpus_of_a_machine, is_own, one_machine_holds
from raymed.errors import UserError
from raymed.training.fit import Resources, resources, spread
from raymed.tuning import card_share

if TYPE_CHECKING:
    from raymed.training.spec import RunSpec
    from raymed.tuning.search import Search

DRIVER_CPUS = 0.01  # a trial's driver only waits for its workers, and Tune refuses exactly 0


def trial_resources(search: Search) -> tuple[Resources, int]:
    """What each trial takes, and how many run at once.

    Raises:
        UserError: not even one trial fits into the cluster.
    """
    have, asked = capacity(cluster.resources()), search.template.workers
    workers = search.template.helpful(asked)
    alone = not (search.settings.space or len(search.runs) > 1 or have["GPU"]) and is_own()
    if have["GPU"]:
        of_card = card_share.share(search)
        there = max(1, cpus_per_gpu() // int(1 / of_card))
    else:
        there, of_card = spread((os.cpu_count() or 1) if alone else asked, workers), 0.0
    cpus, fewest = search.settings.cpus_per_worker or there, min(workers, search.template.min_workers)
    each = resources(workers, cpus, fewest, of_card)
    fitting = fitting_runs(each, have)
    if not fitting:
        raise UserError(f"one trial needs {each.workers} x {each.cpus} CPUs and a little for its driver: lower --workers")
    return each, min(search.settings.concurrent or fitting, fitting)


def idle_workers(search: Search, each: Resources) -> str:
    """Of workers that would only idle and are left out; empty where there are none."""
    template = search.template
    if each.workers == template.workers:
        return ""
    return (
        f"{template.workers} workers, {template.train.global_batch} {template.sampling.noun} a step: no faster than "
        f"{each.workers}, so a run takes {each.workers}, with {each.cpus} CPUs each. A larger --train.global_batch "
        "keeps more of them busy"
    )


def workers_apart(each: Resources) -> str:
    """Of the workers of a run that no machine holds together; empty where one does."""
    alone = is_own() and not each.gpus
    if each.workers == 1 or alone or one_machine_holds(each.workers, each.cpus, each.gpus):
        return ""
    together = gpus_of_a_machine() if each.gpus else 1
    if each.gpus and each.workers > together:
        where = f"{math.ceil(each.workers / together)} machines ({together} GPU{'s' if together > 1 else ''} each)"
    else:
        where = f"several machines (none holds {each.workers} x {each.cpus} CPUs)"
    return (
        f"the {each.workers} workers of a run lie on {where}, and sum their gradients over the network in every step. "
        f"Where that is slow, --workers {together} lets more runs share the machines"
    )


def whole_resources(search: Search, spec: RunSpec) -> Resources:
    """What a run takes that has for itself what the search's trials have between them: workers as far as they help."""
    each, concurrent = trial_resources(search)
    if each.gpus:
        on_a_card = int(1 / each.gpus)
        workers = spec.helpful(math.ceil(each.workers * concurrent / on_a_card))
        there = int((capacity(cluster.resources())["CPU"] - 1) / workers)  # one is left to what only waits
        each = dataclasses.replace(each, gpus=1.0, cpus=max(each.cpus, min(each.cpus * on_a_card, there)))
    else:
        workers = spec.helpful(each.workers * concurrent)
        each = dataclasses.replace(each, cpus=spread(each.workers * each.cpus * concurrent, workers))
    return dataclasses.replace(each, workers=workers, min_workers=min(workers, each.min_workers))


def judging_workers(search: Search) -> int:
    """How many workers judge the winner: on a cluster as many as its trials had, on one machine this process."""
    if is_own():
        return 1
    (each, concurrent), have = trial_resources(search), cluster.resources()
    there = have.get("GPU", 0.0) if each.gpus else have.get("CPU", 0.0) / each.cpus
    return max(1, min(each.workers * concurrent, int(there)))


def fitting_runs(each: Resources, have: Mapping[str, float]) -> int:
    """How many runs that take `each` there is room for in what a cluster has."""
    by_cpus = int(have.get("CPU", 0.0) / (each.min_workers * each.cpus + DRIVER_CPUS))
    if not each.gpus:
        return by_cpus
    gpus = int(have.get("GPU", 0.0))
    if each.lie_together:
        there = [int(machine.get("GPU", 0.0)) for machine in cluster.machines()]
        to_come, rest = divmod(max(0, gpus - sum(there)), gpus_of_a_machine())
        alike = [gpus_of_a_machine()] * to_come
        return min(by_cpus, sum(_on(count, each) for count in (*there, *alike, rest)))
    return min(by_cpus, _on(gpus, each))


def _on(gpus: int, each: Resources) -> int:
    """How many runs find their fewest workers on so many GPUs."""
    return gpus * int(1 / each.gpus) // each.min_workers
