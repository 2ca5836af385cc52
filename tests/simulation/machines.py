"""Hosts and processes of a simulated night, one of which runs at a time, and what befalls them.

A process is the product's own code in a coroutine. Wherever it touches the world (a disk, the clock, MLflow) it may be
interrupted: another process goes on, a fault strikes, or it is killed right there. All that happens follows from a seed and
a list of faults.
"""

from __future__ import annotations

import errno
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet

SWITCH = 0.05  # of the moments at which a process touches the world, those at which another one goes on
TICK = 0.002  # seconds that such a moment takes


class Killed(BaseException):
    """The process is no more."""


class Stuck(AssertionError):  # noqa: N818
    """The night does not end."""


@dataclass
class Host:
    """A machine.

    Attributes:
        offset: by how much its clock that people set is wrong.
        booted: when it was started last.
        off_until: when its power comes back.
        full_until: when its own disk takes more again.
    """

    name: str
    offset: float = 0.0
    booted: float = 0.0
    off_until: float = 0.0
    full_until: float = 0.0


@dataclass(eq=False)
class Process:
    """A process of a host.

    Attributes:
        number: its process id.
        wakes: when it goes on.
        frozen_until: or later, where it was stopped from outside.
        is_told: whether it was asked to end.
        is_training: whether it is a search whose trials train.
        was_cut: whether it, or its storage, stood still or was denied for so long that its lease may be another's.
        background: what goes on beside its main thread.
        holds: leases that it holds.
        marks: by storage, the files that it knows it by.
        reads: data of which it has noted that it reads them.
        ended: how it ended: "" in the good.
    """

    kind: str
    host: Host
    number: int
    code: greenlet
    wakes: float = 0.0
    frozen_until: float = 0.0
    is_told: bool = False
    is_training: bool = False
    was_cut: bool = False
    is_alive: bool = True
    background: list[Background] = field(default_factory=list)
    holds: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, Any] = field(default_factory=dict)
    reads: set[tuple[str, str]] = field(default_factory=set)
    ended: str | None = None
    error: BaseException | None = None

    @property
    def is_beating(self) -> bool:
        """Whether its heart is what runs."""
        return any(each.beats and each.is_under_way for each in self.background)


class World:
    """Everything there is. `now` is the true time in seconds."""

    def __init__(self, seed: int, hosts: int) -> None:
        self.draw = random.Random(seed)
        self.now, self.moments = 1e6, 0
        self.hosts = [Host(f"host-{number}") for number in range(hosts)]
        self.processes: list[Process] = []
        self.current: Process | None = None
        self.strike: Callable[[str, Any], None] = lambda kind, target: None  # faults; see faults.py
        self.watch: Callable[[], None] = lambda: None  # called whenever the hub decides who goes on
        self.wake_by = math.inf  # when to call it again at the latest
        self._count, self._hub = 0, getcurrent()

    def start(self, kind: str, host: Host, main: Callable[[], None], after: float = 0.0) -> Process:
        """Begin a process in a while."""
        self._count += 1

        def body() -> None:
            process.ended = "killed"
            try:
                main()
                process.ended = ""
            except Killed:
                pass
            except Exception as error:
                process.ended, process.error = str(error) or type(error).__name__, error
            except KeyboardInterrupt:
                process.ended = "interrupted"
            finally:
                process.is_alive = False

        code = greenlet(body, parent=self._hub)  # which goes on when it ends
        process = Process(kind, host, 1000 + self._count, code, self.now + after)
        self.processes.append(process)
        return process

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let processes go on, one at a time, until it is over."""

        while not is_over():
            self.watch()
            self.processes = [process for process in self.processes if process.is_alive]
            times = [self._next(process) for process in self.processes]
            first = min(self.wake_by, *times) if times else self.wake_by
            if first == math.inf:
                raise Stuck(f"all wait: {[process.kind for process in self.processes]}")
            self.now = max(self.now, first)
            able = [process for process, when in zip(self.processes, times, strict=True) if when <= self.now]
            if able:
                self.current = self.draw.choice(able)
                self.current.code.switch()
                self.current = None

    def _next(self, process: Process) -> float:
        wakes = process.wakes
        for each in process.background:
            if each.beats and each.due < wakes:
                wakes = each.due
        return max(wakes, process.frozen_until, process.host.off_until)

    def kill(self, process: Process) -> None:
        """It ends where it is, and gets to do nothing any more."""
        if not process.is_alive:
            return
        process.is_alive = False
        process.ended = "killed"
        if process is self.current:
            raise Killed
        if process.code:  # has begun
            before, self.current = self.current, process
            process.code.parent = getcurrent()
            process.code.throw(Killed)
            self.current = before

    def touch(self, kind: str, target: Any = "", may_yield: bool = True) -> None:
        """The running process touches the world."""
        process = self.current
        if process is None:
            return
        if not process.is_alive:
            raise Killed
        self.moments += 1
        self.now += TICK
        self.strike(kind, target)
        if not process.is_alive:
            raise Killed
        if may_yield and (process.frozen_until > self.now or self.draw.random() < SWITCH):
            process.wakes = self.now
            self._yield(process)

    def require_room(self) -> None:
        """Raises: OSError: the own disk of the running process's host is full."""
        if self.current is not None and self.now < self.current.host.full_until:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sleep(self, duration: float) -> None:
        """The running process waits; what beats in it goes on."""
        process = self.current
        if process is None:
            self.now += duration
            return
        until = self.now + duration
        while True:
            process.wakes = until
            self._yield(process)
            if self.now >= until:
                return
            process.wakes = math.inf
            _beat(process, self.now)

    def _yield(self, process: Process) -> None:
        if process.is_alive:
            self._hub.switch()
        if not process.is_alive:
            raise Killed

    def idle(self, seconds: float) -> None:
        """The running process waits for a moment, or until something in its background is to be done, and does it."""
        process = self.current
        assert process is not None
        due = min((each.due for each in process.background), default=math.inf)
        process.wakes = min(self.now + seconds, max(due, self.now))
        self._yield(process)
        for each in list(process.background):
            if each.due <= self.now:
                each.step()


def _beat(process: Process, now: float) -> None:
    for each in list(process.background):
        if each.beats and each.due <= now:
            each.step()


class Background:
    """As `raymed.background.Background`: of one process, done while its main thread waits."""

    world: World
    beats = False  # a heart goes on whatever the main thread does

    def __init__(self, name: str, step: Callable[[], float | None], first: float = 0.0) -> None:
        self._step, self._first = step, first
        self.due = math.inf
        self._process = self.world.current
        self.is_under_way = False

    def start(self) -> None:
        self.due = self.world.now + self._first
        if self._process is not None:
            self._process.background.append(self)

    def wake(self) -> None:
        if self._process is not None and self in self._process.background:
            self.due = self.world.now

    def join(self, seconds: float) -> None:
        until = self.world.now + seconds
        while self._process is not None and self in self._process.background and self.world.now < until:
            if self.due <= self.world.now:
                self.step()
            else:
                self.world.sleep(min(self.due, until) - self.world.now)

    def step(self) -> None:
        if self.is_under_way:
            return
        self.is_under_way, self.due = True, math.inf
        try:
            pause = self._step()
        finally:
            self.is_under_way = False
        if pause is None:
            if self._process is not None and self in self._process.background:
                self._process.background.remove(self)
        else:
            self.due = min(self.due, self.world.now + pause)
