"""The model of Ray that simulated nights run over, and Ray Train itself, told the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from machines import Killed, World
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.training_report import _TrainingReport
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray_model import Attempt
from worker_model import Toy

from raymed.compat.ray_train import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME, Trainer
from raymed.errors import RunError
from raymed.training.checkpoint import checkpoint_names, new_name, publish
from raymed.training.fit import POLL, Resources, fit
from raymed.training.reports import LOST, Reports
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec

TELL, TELL_LAST, SAVE, DIE = "tell", "tell, and die before it is heard", "save", "die"
Event = tuple[str, int]


def events(seed: int) -> list[Event]:
    """What befalls a run's worker, one after the other, until its end."""
    draw = random.Random(seed)
    return [(draw.choice((TELL, TELL_LAST, SAVE, DIE)), number) for number in range(draw.randrange(12))]


class Seen:
    """What became of a run: what the search was told, how often workers were started, what is in the storage."""

    def __init__(self, folder: Path) -> None:
        train = TrainSettings(epochs=1, global_batch=1, micro_batch=1)
        self.spec = RunSpec("run", str(folder), "", Toy(), train)  # type: ignore[arg-type]
        folder.mkdir()
        self.told: list[Any] = []
        self.starts, self.has_failed = 0, False

    def put(self, report: dict[str, Any]) -> None:
        """As a queue."""
        self.told.append(LOST if LOST in report else report["number"])

    def save(self, number: int, scratch: Path) -> None:
        folder = scratch / f"saved-{number}"
        folder.mkdir()
        publish(folder, self.spec.folder, new_name(number, number))

    def facts(self) -> tuple[Any, ...]:
        steps = [name.split("-")[1] for name in checkpoint_names(self.spec.folder)]
        return self.told, self.starts, self.has_failed, steps


def by_the_model(course: list[Event], seen: Seen, scratch: Path) -> None:
    world, left = World(0, 1), iter(course)
    world.draw = SimpleNamespace(choice=lambda items: items[0], random=lambda: 0.0)  # type: ignore[assignment]

    def work(spec: RunSpec, attempt: Attempt) -> None:
        seen.starts += 1
        for what, number in left:
            if what == SAVE:
                seen.save(number, scratch)
            if what in (TELL, TELL_LAST):
                attempt.tell({"number": number})
            if what == TELL:
                world.sleep(2 * float(POLL))
            if what in (DIE, TELL_LAST):
                raise Killed

    driver = world.start("driver", world.hosts[0], lambda: world.sleep(1e9))
    job: Any = SimpleNamespace(world=world, work=work, driver=driver, storage_is_there=lambda: True)
    attempt = Attempt(job, SimpleNamespace(config={"spec": seen.spec}))

    def watch() -> None:
        attempt.look()
        for report in attempt.reports if attempt.worker.is_alive or attempt.ended is not None else []:
            seen.put(report)
        if attempt.worker.is_alive or attempt.ended is not None:
            attempt.reports.clear()

    world.watch = watch
    world.run(lambda: attempt.ended is not None)
    seen.has_failed = bool(attempt.ended)


class Workers:
    """In place of Ray Train's group of workers, to its controller: each look at it is told the next that befalls them."""

    left: Iterator[Event]
    seen: Seen
    scratch: Path

    def __init__(self, callbacks: list[Any]) -> None:
        self._callbacks = callbacks

    @classmethod
    def create(cls, train_run_context: Any, worker_group_context: Any, callbacks: list[Any]) -> Workers:
        cls.seen.starts += 1
        group = cls(callbacks)
        for callback in callbacks:
            callback.after_worker_group_start(group)
        return group

    def poll_status(self, timeout: float) -> WorkerGroupPollStatus:
        status = WorkerGroupPollStatus({0: self._status()})
        for callback in self._callbacks:
            callback.after_worker_group_poll_status(status)
        return status

    def _status(self) -> WorkerStatus:
        what, number = next(self.left, ("", 0))
        if what == SAVE:
            self.seen.save(number, self.scratch)
        report = _TrainingReport(None, {"number": number}, False) if what == TELL else None
        dead = WorkerHealthCheckFailedError("", ActorDiedError()) if what in (DIE, TELL_LAST) else None
        return WorkerStatus(running=what in (TELL, SAVE), error=dead, training_report=report)

    def shutdown(self) -> None:
        """There is nothing."""

    def get_latest_poll_status(self) -> None:
        return None

    def get_worker_group_state(self) -> None:
        return None

    def get_workers(self) -> list[int]:
        return [0]

    def __len__(self) -> int:
        return 1


def by_ray_train(course: list[Event], seen: Seen, scratch: Path, patch: pytest.MonkeyPatch) -> None:
    """Its own controller, failure policy, consolidation of reports and checkpoint manager, as `fit` sets them up."""
    group = type("Group", (Workers,), {"left": iter(course), "seen": seen, "scratch": scratch})
    controlled = type("Controller", (TrainController,), {"worker_group_cls": group})
    asks = ("_maybe_send_resource_request", "_send_resource_request", "_cancel_resource_request")  # of a cluster
    scaling = type("Fixed", (FixedScalingPolicy,), dict.fromkeys(asks, lambda self: None))

    def run(trainer: Trainer) -> None:
        context = trainer.train_run_context
        handler = UserCallbackHandler([each for each in trainer.run_config.callbacks if isinstance(each, Reports)], context)
        policy = create_failure_policy(trainer.run_config.failure_config)
        controller = controlled(None, context, scaling(trainer.scaling_config), policy, [handler])
        asyncio.run(controller.run())
        if error := controller.get_training_failed_error():
            raise error

    for name in ("HEALTH_CHECK_INTERVAL_S", "ENABLE_PREEMPTION_WATCHER", "ENABLE_CONTROLLER_STRUCTURED_LOGGING"):
        patch.setenv(f"RAY_TRAIN_{name}", "0")
    patch.setattr(Trainer, "fit", run)
    try:
        fit(seen.spec, SimpleNamespace(), Resources(1, 1, 1, 0), callbacks=[Reports(seen)])  # type: ignore[arg-type]
    except RunError:
        seen.has_failed = True


def test_the_model_of_ray_train_tells_the_search_what_ray_train_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same reports in their order, the same losses of workers, as many starts, the same end."""
    for seed in range(40):
        scratch = tmp_path / f"{seed}"
        for way in ("model", "ray"):
            (scratch / way).mkdir(parents=True)
        model, real = Seen(scratch / "model" / "storage"), Seen(scratch / "ray" / "storage")
        by_the_model(events(seed), model, scratch / "model")
        by_ray_train(events(seed), real, scratch / "ray", monkeypatch)
        assert model.facts() == real.facts(), f"seed {seed}: {events(seed)}"
        assert not real.spec.folder.exists(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME), "Ray Train keeps checkpoints of its own"
