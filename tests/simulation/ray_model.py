"""A small model of Ray: Tune asks for trials and passes on reports, Train starts workers again that were lost.

Ray Tune's side of the product (`StudySearcher`, `StudyScheduler`) is the real one, called as Ray Tune calls it. When the
search's process dies, its workers go on for a while before Ray ends them. Checkpoints are no affair of Ray's: the product
copies and removes them itself. What is told of lost workers is compared with Ray Train's own in test_models_against_ray.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from machines import Process, World
from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher

from raymed.storage.availability import wait_for
from raymed.training.checkpoint import newest_step
from raymed.training.fit import POLL, RESTARTS
from raymed.training.reports import LOST
from raymed.training.spec import RunSpec
from raymed.tuning.execution import Training, _decisions
from raymed.tuning.ray_tune import Observer, StudyScheduler, StudySearcher
from raymed.tuning.search import Search
from raymed.tuning.study import Study
from raymed.tuning.timetable import Timetable

LINGER = 20.0  # seconds that workers go on, at most, after their search's process died

Work = Callable[[RunSpec, "Attempt"], None]
"""What a worker does."""


class Attempt:
    """A trial that Ray Tune runs: its workers, one after the other, and what they report.

    Attributes:
        reports: not yet passed on to the search.
        ended: why it ended; "" in the good, None while it goes on.
        leaving: whether it was asked to save a checkpoint and end.
    """

    def __init__(self, job: Job, trial: Any) -> None:
        self.job, self.trial, self.spec = job, trial, trial.config["spec"]
        self.reports: list[dict[str, Any]] = []
        self.ended: str | None = None
        self.leaving = False
        self.failures, self.before = 0, self._newest_step()
        self._told = -math.inf
        self.ends: float | None = None
        self.start(0.5)

    def _newest_step(self) -> int:
        """As the trial's own process looks it up, which waits for its storage."""
        return wait_for(lambda: newest_step(self.spec.folder), self.spec.folder, self.spec.train.storage_minutes)

    def start(self, after: float) -> None:
        world = self.job.world
        host = world.draw.choice(world.hosts)
        self.worker = world.start("worker", host, lambda: self.job.work(self.spec, self), after)
        self.worker.wakes = max(self.worker.wakes, host.off_until)

    @property
    def may_be_killed(self) -> bool:
        """Whether Ray starts its worker again: a run that is lost too often without getting on fails, as it is to."""
        return self.failures < RESTARTS

    def tell(self, report: dict[str, Any]) -> None:
        self.reports.append(report)
        self._told = self.job.world.now
        self.job.driver.wakes = min(self.job.driver.wakes, self.job.world.now)

    def look(self) -> None:
        """What Ray Train's controller does when a worker has ended."""
        if self.worker.is_alive or self.ended is not None:
            return
        if self.worker.ended == "":
            self.ended = ""
            return
        if self.worker.ended == "killed" and self.reports and self.job.world.now - self._told < float(POLL):
            if self.job.world.draw.random() < 0.5:  # a worker keeps what it tells until it is fetched
                self.reports.pop()
            self._told = -math.inf
        if not self.job.storage_is_there():
            return
        self.reports.append({LOST: f"the worker was lost: {self.worker.ended}"})
        self.failures += 1
        if self.failures > RESTARTS:
            if self._newest_step() == self.before:
                self.ended = f"RunError: the worker was lost: {self.worker.ended}"
                return
            self.failures, self.before = 0, self._newest_step()
        self.start(2.0)


class Job:
    """What Ray does for one process of a search.

    Attributes:
        is_outlived: whether the search goes on in another process, that this one has stopped or not.
    """

    def __init__(
        self, world: World, search: Search, study: Study, work: Work, notes: Path, storage_is_there: Callable[[], bool]
    ) -> None:
        self.world, self.work, self.storage_is_there = world, work, storage_is_there
        self.driver: Process = world.current  # type: ignore[assignment]
        self._search, self._study, self._notes = search, study, notes
        self.verdicts: dict[tuple[str, int], bool] = {}
        self.has_lost_verdicts = self.is_outlived = False
        self.attempts: list[Attempt] = []
        self.give = SimpleNamespace(remote=self._give)

    def _give(self, name: str, epoch: int, stop: bool) -> None:
        self.verdicts[name, epoch] = stop

    def train(self, timetable: Timetable, observe: Observer, concurrent: int) -> Mapping[int, str]:
        interrupt, storage = SimpleNamespace(told=False), SimpleNamespace(is_away=False)
        machines: Any = SimpleNamespace(begins=_pass, reports=_pass, ends=_pass)  # they are all there
        searcher = StudySearcher(
            self._study,
            timetable,
            self._search.run_spec,
            interrupt,
            storage,
            machines,
            lambda: concurrent,  # type: ignore[arg-type]
        )
        scheduler = StudyScheduler(self._study, timetable, self, observe, interrupt, storage, machines)  # type: ignore[arg-type]
        is_over, count = False, 0
        while True:
            if self.driver.is_told and not interrupt.told:
                interrupt.told = True
                for attempt in self.attempts:
                    attempt.leaving = True
            if self.has_lost_verdicts:
                self.has_lost_verdicts = False
                for decision in _decisions(self._search, self._study):
                    self._give(*decision)
            storage.is_away = not self.storage_is_there()
            while not is_over and len(self.attempts) < concurrent:
                count += 1
                suggestion = searcher.suggest(f"tune-{count}")
                is_over = suggestion == Searcher.FINISHED
                if not suggestion or is_over:
                    break
                trial = SimpleNamespace(config=suggestion, error_file=None, id=f"tune-{count}")
                scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
                self.attempts.append(Attempt(self, trial))
            if not self.attempts and (is_over or interrupt.told):
                break
            self.world.idle(5.0)
            self._pass_on(searcher, scheduler)
        if interrupt.told:
            raise KeyboardInterrupt
        return {}

    def _pass_on(self, searcher: StudySearcher, scheduler: StudyScheduler) -> None:
        """One report, or the end of a trial."""
        ready = [attempt for attempt in self.attempts if attempt.reports or attempt.ended is not None]
        if not ready:
            return
        attempt = self.world.draw.choice(ready)
        trial = attempt.trial
        if attempt.reports:
            scheduler.on_trial_result(None, trial, attempt.reports.pop(0))
            return
        self.attempts.remove(attempt)
        if attempt.ended:
            trial.error_file = self._notes / "error.txt"
            trial.error_file.write_text(str(ActorDiedError()) if attempt.ended == "driver" else attempt.ended)
            scheduler.on_trial_error(None, trial)
        else:
            scheduler.on_trial_complete(None, trial, {})
        searcher.on_trial_complete(trial.id)

    def look(self) -> None:
        """What Ray itself does meanwhile."""
        for attempt in self.attempts:
            if self.driver.is_alive:
                attempt.look()
                continue
            if attempt.ends is None:
                attempt.ends = self.world.now + self.world.draw.uniform(0, LINGER)
            if self.world.now >= attempt.ends:
                self.world.kill(attempt.worker)
        if not self.driver.is_alive:
            self.attempts = [attempt for attempt in self.attempts if attempt.worker.is_alive]

    def leave(self) -> None:
        """The search's process leaves Ray, which ends its workers."""
        for attempt in self.attempts:
            self.world.kill(attempt.worker)
        self.attempts = []


@contextmanager
def ray_model(job: Job, timetable: Timetable, concurrent: int) -> Iterator[Training]:
    """In place of `raymed.tuning.execution.ray_tune`."""
    try:
        yield lambda observe: job.train(timetable, observe, concurrent)
    except (Exception, KeyboardInterrupt):
        job.leave()
        raise


def _pass(number: int) -> None:
    """Nothing is made of it."""
