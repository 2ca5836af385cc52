"""What befalls a night: faults that follow from a seed, each at a moment, and what it does to whoever touches the world."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from machines import Host
from setting import NEWER, Setting

if TYPE_CHECKING:
    from simulated_night import Night


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        moment: it strikes when the world was touched so often, or later,
        what: see `STRIKES`,
        where: and at a touch of this kind; "" at any.
        number: decides what else is random of it.
    """

    moment: int
    what: str
    where: str = ""
    number: int = 0


WRONG = (-1e6, -3600.0, -5.0, 5.0, 3600.0, 1e8)  # seconds by which a clock is
PLACES = (
    "",
    "keep",
    "rename",
    "write",
    "write more",
    "remove",
    "make",
    "put",
    "object",
    "answer",
    "ask",
    "report",
    "look",
    "fetch",
)
REQUESTS = (
    "create_run",
    "search_runs",
    "get_run",
    "delete_run",
    "log_batch",
    "get_metric_history",
    "log_inputs",
    "update_run",
    "set_terminated",
    "get_model_version_by_alias",
    "set_registered_model_alias",
    "search_model_versions",
    "get_registered_model",
    "create_registered_model",
    "create_model_version",
    "create_model_version",
    "delete_model_version",
    "get_model_version",
)


def faults(seed: int, names: tuple[str, ...] | None = None) -> list[Fault]:
    """The faults of a seed's night, by moment: one, or many, of which some follow at another's heels."""
    draw = random.Random(f"faults {seed}")
    weights = WEIGHTS if seed < NEWER else WEIGHTS | NEW_WEIGHTS
    names = names or tuple(name for name, weight in weights.items() for _ in range(weight))
    drawn: list[Fault] = []
    moment, last = 0, Setting.of(seed).moments
    for _ in range(draw.choice((1, 2, 3, 4, 6, 9))):
        moment = draw.randrange(last) if not drawn or draw.random() < 0.6 else moment + draw.randrange(60)
        where = draw.choice(PLACES) if draw.random() < 0.7 else ""
        drawn.append(Fault(moment, draw.choice(names), where, draw.getrandbits(32)))
    return sorted(drawn, key=lambda fault: fault.moment)


def set_clocks(hosts: Sequence[Host], seed: int) -> None:
    """How wrong the hosts' clocks are when the night begins."""
    draw = random.Random(f"clocks {seed}")
    if seed >= NEWER and draw.random() < 0.5:
        for host in hosts:
            host.offset = draw.choice(WRONG)


def strike(night: Night, fault: Fault, kind: str, target: Any) -> None:
    """A fault befalls the running process, or something else."""
    draw = random.Random(fault.number)
    STRIKES[fault.what](night, draw)


def kill(night: Night, draw: random.Random) -> None:
    """The running process."""
    if night.may_kill(night.world.current):
        night.world.kill(night.world.current)


def kill_worker(night: Night, draw: random.Random) -> None:
    workers = [process for process in night.world.processes if process.kind == "worker" and night.may_kill(process)]
    if workers:
        night.world.kill(draw.choice(workers))


def kill_driver(night: Night, draw: random.Random) -> None:
    for process in night.drivers:
        night.world.kill(process)


def cut_power(night: Night, draw: random.Random) -> None:
    """Of a host."""
    _cut_power(night, draw.choice(night.world.hosts), draw)


def cut_power_of_the_running(night: Night, draw: random.Random) -> None:
    _cut_power(night, night.world.current.host, draw)


def _cut_power(night: Night, host: Host, draw: random.Random) -> None:
    if night.may_lose(host):
        night.cut_power(host, draw)


def cut_power_of_all(night: Night, draw: random.Random) -> None:
    """Also of what holds the shared storage."""
    night.cut_all_power(draw)


def take_storage_away(night: Night, draw: random.Random) -> None:
    """For less than the product waits for it, or for more."""
    night.take_storage_away(draw.choice((1.0, 30.0, 400.0, 4000.0)))


def fill_storage(night: Night, draw: random.Random) -> None:
    night.full_until = night.world.now + draw.choice((1.0, 60.0, 900.0))


def fail_once(night: Night, draw: random.Random) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def be_slow(night: Night, draw: random.Random) -> None:
    """The running process waits for its disk; its heart, where that is what waits, may be taken for dead."""
    night.be_slow(draw.uniform(1, 100))


def freeze(night: Night, draw: random.Random) -> None:
    """A host stands still for longer than its leases live, and comes back."""
    host, until = draw.choice(night.world.hosts), night.world.now + draw.uniform(20, 200)
    for process in night.world.processes:
        if process.host is host:
            process.frozen_until = until


def set_clock(night: Night, draw: random.Random) -> None:
    """Of a host, as people read it."""
    draw.choice(night.world.hosts).offset += draw.choice(WRONG)


def take_mlflow_away(night: Night, draw: random.Random) -> None:
    night.mlflow.is_away = True
    night.later(draw.choice((5.0, 60.0, 700.0)), night.bring_mlflow_back)


def lose_answers(night: Night, draw: random.Random) -> None:
    night.mlflow.lose_answers += draw.randint(1, 4)


def create_twice(night: Night, draw: random.Random) -> None:
    night.mlflow.twice += 1


def set_mlflow_back(night: Night, draw: random.Random) -> None:
    """To a copy of before, as a restored database; the server is down meanwhile, and so may the search be."""
    night.set_mlflow_back(draw.choice((30.0, 600.0)))
    if draw.random() < 0.5:
        kill_driver(night, draw)


def delete_run(night: Night, draw: random.Random) -> None:
    """A person deletes a trial's run in the UI."""
    night.delete_run(draw)


def come_twice(night: Night, draw: random.Random) -> None:
    """The same command once more, on any host."""
    night.start_driver(draw.choice(night.world.hosts))


def interrupt(night: Night, draw: random.Random) -> None:
    """Ctrl-C."""
    for process in night.drivers:
        process.is_told = True


def lose_verdicts(night: Night, draw: random.Random) -> None:
    """The process of stop decisions dies, and is started again without them."""
    night.lose_verdicts()


def change_head(night: Night, draw: random.Random) -> None:
    """The head is gone for good, with its disk; the command is given on another host."""
    night.change_head(draw)


def prepare_others(night: Night, draw: random.Random) -> None:
    """Other patients are prepared into the same folder, and after a while those of before again."""
    night.prepare_others(draw)


def promote(night: Night, draw: random.Random) -> None:
    """A person makes another version the champion."""
    night.promote()


def fill_own_disk(night: Night, draw: random.Random) -> None:
    """Of a host: what a worker puts together for the storage lies there, and a record whose storage is an object store."""
    draw.choice(night.world.hosts).full_until = night.world.now + draw.choice((1.0, 60.0, 900.0))


def refuse_uploads(night: Night, draw: random.Random) -> None:
    """One or some of those to come, such as one file of a checkpoint."""
    store = night.storages.store
    store.spared, store.refused = draw.randrange(8), draw.choice((1, 1, 2, 10))


def leave_uploads_unanswered(night: Night, draw: random.Random) -> None:
    store = night.storages.store
    store.spared, store.unanswered = draw.randrange(8), draw.choice((1, 1, 2, 10))


def deny_uploads(night: Night, draw: random.Random) -> None:
    night.deny_uploads(draw.choice((1.0, 60.0, 900.0)))


def slow_uploads(night: Night, draw: random.Random) -> None:
    night.storages.store.slow_until = night.world.now + draw.choice((20.0, 300.0))


def leave_requests_uncertain(night: Night, draw: random.Random) -> None:
    """To MLflow, of one kind or some: done twice, done and not answered, or not done."""
    for name in draw.sample(REQUESTS, draw.choice((1, 2, 4))):
        night.mlflow.fates[name] = draw.choice(("twice", "lost", "refused"))


WEIGHTS = {
    "kill": 6,
    "kill_worker": 2,
    "kill_driver": 3,
    "cut_power": 3,
    "cut_power_of_the_running": 5,
    "cut_power_of_all": 4,
    "take_storage_away": 2,
    "fill_storage": 2,
    "fail_once": 3,
    "be_slow": 1,
    "freeze": 2,
    "set_clock": 1,
    "take_mlflow_away": 1,
    "lose_answers": 2,
    "create_twice": 2,
    "set_mlflow_back": 1,
    "delete_run": 1,
    "come_twice": 2,
    "interrupt": 2,
    "lose_verdicts": 1,
    "change_head": 1,
    "prepare_others": 2,
    "promote": 1,
}
NEW_WEIGHTS = {
    "fill_own_disk": 4,
    "refuse_uploads": 6,
    "leave_uploads_unanswered": 3,
    "deny_uploads": 3,
    "slow_uploads": 2,
    "leave_requests_uncertain": 8,
}
STRIKES: dict[str, Callable[[Night, random.Random], None]] = {name: globals()[name] for name in WEIGHTS | NEW_WEIGHTS}
