"""How many trials share a card where `search.gpus_per_worker` is auto: by what one is seen to need before the search begins.

Tried is what `train.micro_batch auto` tries, on a card that nobody else has; what came of it stays in the search's folder.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from raymed.cluster import connection as cluster
from raymed.cluster.autoscaler import NONE_CAN_COME, machines_to_come, none_can_come
from raymed.cluster.connection import capacity, cpus_per_gpu
from raymed.errors import RunError, UserError
from raymed.language import say
from raymed.storage.folder import Folder
from raymed.training import memory_plan, memory_try
from raymed.training.cards import CONTEXT
from raymed.training.memory_plan import FILLED, MemoryPlan, shared_name
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget

if TYPE_CHECKING:
    from raymed.tuning.search import Search

MOST = 8  # trials on a card: their kernels take turns
CPUS = 2  # that a trial wants at least: one reads and varies pictures while the other starts kernels
EXACT = 10_000  # parts of a card that Ray tells apart

log = logging.getLogger("raymed")


def settle(search: Search, budget: Budget) -> None:
    """Find out what the search's trials need of a card, where that is asked for, and say how many share one.

    A search that goes on knows it, and asks for the card's memory only: it may be another one. A choice that cannot be tried
    is left to its trial, which ends alone.

    Raises:
        UserError: nothing that is searched can be tried; a trial needs more than a card has, for example.
        RunError: no card was free within the search's time, or none can come.
    """
    if not _is_asked(search):
        return
    log.info("trying out how much of a card a trial needs")
    card, cpus = torch.device("cuda", 0), min(CPUS, cpus_per_gpu())
    room = memory_try.room_alone(card, partial(_wait, budget))
    plans, refused = 0, list[UserError]()
    for what, spec, folder, name in _places(search):
        plan = MemoryPlan.read(folder, name)
        try:
            if plan is None or plan.needed > FILLED * room:
                plan = memory_plan.plan_alone(spec, card, room, cpus)
        except UserError as error:
            log.warning("%s, as tried on a whole card: %s", what, error)
            refused.append(error)
            continue
        dataclasses.replace(plan, room=room).write(folder, name)
        plans += 1
    if not plans:
        raise refused[0]
    log.info("%s", line(search))


def _wait(budget: Budget) -> None:
    """A minute went by without a card for it."""
    if none_can_come():
        gave_up = NONE_CAN_COME.format(why=machines_to_come())
        raise RunError(gave_up)
    if budget.time_is_over:
        raise RunError("no card was free within the search's time, to try what a trial needs of it")
    log.info("%s", "; ".join(filter(None, ("a card is waited for, to try what a trial needs of it", machines_to_come()))))


def share(search: Search) -> float:
    """The part of a card that a trial takes; a whole one until it is known what fits."""
    if search.settings.gpus_per_worker != "auto":
        return search.settings.gpus_per_worker
    plan = _found(search)
    return 1.0 if plan is None else EXACT // _on_a_card(search, plan) / EXACT


def line(search: Search) -> str:
    """What a person reads of it; empty where it is not asked for."""
    if not _is_asked(search):
        return ""
    plan = _found(search)
    if plan is None:
        return say("how many trials share a card is tried when the search begins")
    return say(
        "{count} at once on a card: {fit} fit into its {room:.2f} GiB, of which one needs {needed:.2f}; {cpus} find their "
        "CPUs; {most} are the most",
        count=_on_a_card(search, plan),
        fit=fitting(plan),
        room=plan.room / 2**30,
        needed=plan.needed / 2**30,
        cpus=_by_cpus(search),
        most=_most(search),
    )


def fitting(plan: MemoryPlan) -> int:
    """How many processes find room that need so much each, with a margin, and the context of each."""
    return int((plan.room + CONTEXT) / (plan.needed / FILLED + CONTEXT))


def _is_asked(search: Search) -> bool:
    """Workers of one run never share a card, and where there are cards for all trials none need."""
    asked = search.settings.gpus_per_worker == "auto" and search.template.workers == 1
    return asked and bool(capacity(cluster.resources())["GPU"]) and _most(search) > 1


def _on_a_card(search: Search, plan: MemoryPlan) -> int:
    return max(1, min(fitting(plan), _by_cpus(search), _most(search)))


def _by_cpus(search: Search) -> int:
    return cpus_per_gpu() // (search.settings.cpus_per_worker or CPUS)


def _most(search: Search) -> int:
    """No more than there are trials for all cards: Ray fills one card before it takes the next."""
    trials = search.settings.concurrent or (search.budget.trials if search.settings.space else len(search.runs) or 1)
    return min(MOST, math.ceil(trials / capacity(cluster.resources())["GPU"]))


def _found(search: Search) -> MemoryPlan | None:
    """Of those that need most."""
    places = _places(search) if _is_asked(search) else iter(())
    known = [plan for _, _, folder, name in places if (plan := MemoryPlan.read(folder, name)) is not None]
    return max(known, key=lambda plan: plan.needed, default=None)


def _places(search: Search) -> Iterator[tuple[str, RunSpec, Folder, str]]:
    """Runs that may need unlike memory: what each is, and where it is noted what it needs."""
    named = {
        shared_name(dataclasses.replace(spec, fold=None, generation="")): (what, spec) for what, spec in _extremes(search)
    }
    return ((what, spec, search.template.folder, name) for name, (what, spec) in named.items())


def _extremes(search: Search) -> Iterator[tuple[str, RunSpec]]:
    """The listed runs; of a search a run at the upper ends of all ranges, and with each other choice there."""
    if search.runs:
        yield from search.runs.items()
        return
    space = search.settings.space
    params = {name: value if space[name].high is None else space[name].high for name, value in search.defaults.items()}
    yield say("the largest of every range"), search.run_spec(0, params)
    for name, dimension in space.items():
        yield from ((f"{name} {choice}", search.run_spec(0, {**params, name: choice})) for choice in dimension.choices)
