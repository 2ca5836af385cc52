"""A training run from the driver's side: Ray Train places the workers and restarts what dies."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray.train.torch
import torch.distributed as dist
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import FailureConfig, RunConfig

from raymed import clock
from raymed.cluster import connection as cluster
from raymed.cluster.connection import capacity, is_own, one_machine_holds
from raymed.compat.ray_train import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME, Trainer, tune_queue
from raymed.errors import CommonError, RunError, StorageError, UserError
from raymed.storage.availability import BELIEVED, is_denial, is_refusal, require_there, wait_for
from raymed.storage.folder import Folder
from raymed.training.checkpoint import PROGRESS, checkpoint_names, newest_step, read_history
from raymed.training.frozen import Source
from raymed.training.lone_worker import leaves_nothing, suffices, train_alone
from raymed.training.loop import COMMON, FAILED, train
from raymed.training.placement import Placement
from raymed.training.preemption import NoteTermination, is_preempted
from raymed.training.rendezvous import OneMachine
from raymed.training.reports import Reports, cause_of, in_words
from raymed.training.spec import RunSpec
from raymed.training.stall import STALLED
from raymed.training.worker_context import WorkerContext

log = logging.getLogger("raymed")

Done = TypeVar("Done")

POLL = "0.5"  # seconds between Ray Train's looks at its workers; the usual 2 are added to every epoch that a search judges
RESTARTS = 2  # of a run whose worker died, without a new checkpoint in between: an error of the run itself only repeats


@dataclass(frozen=True)
class Resources:
    """What a worker occupies.

    Attributes:
        workers: Ray Train workers of one run, at most.
        min_workers: and at least.
        cpus: CPUs of each.
        gpus: GPUs of each: one, or a share of one; 0 where the cluster has none.
    """

    workers: int
    min_workers: int
    cpus: int
    gpus: float

    @property
    def is_elastic(self) -> bool:
        return self.min_workers < self.workers

    @property
    def lie_together(self) -> bool:
        """Whether all workers of a run wait for a machine that holds them, rather than sum their gradients over a network.

        Those of an elastic run take what there is.
        """
        return 1 < self.workers == self.min_workers and one_machine_holds(self.workers, self.cpus, self.gpus)


def resources(workers: int, cpus_per_worker: int, min_workers: int = 0, gpus_per_worker: float = 1.0) -> Resources:
    """Check that the cluster can hold a run.

    Args:
        min_workers: the run makes do with so many (0 = `workers`).
        gpus_per_worker: where the cluster has GPUs.

    Raises:
        UserError: there are fewer CPUs or GPUs than the workers need.
    """
    fewest = min_workers or workers
    have = capacity(cluster.resources())
    gpus = gpus_per_worker if have["GPU"] else 0.0
    if gpus % 1 and workers > 1:
        raise UserError(
            f"{workers} workers on shares of GPUs: NCCL refuses two that are on one card. Give each one of its own "
            "(--search.gpus_per_worker 1), or a run one worker (--workers 1)"
        )
    if fewest * cpus_per_worker > have["CPU"]:
        raise UserError(
            f"{fewest} workers of {cpus_per_worker} CPUs do not fit into this cluster's {have['CPU']:.0f} CPUs: "
            "lower --workers or --search.cpus_per_worker, or add nodes"
        )
    if fewest * gpus > have["GPU"]:
        raise UserError(f"{fewest} workers need a GPU each and the cluster has {have['GPU']:.0f}: lower --workers")
    return Resources(workers, fewest, cpus_per_worker, gpus)


def spread(cpus: int, workers: int) -> int:
    """CPUs of each of so many workers that share `cpus`, as many as all find on the machines there are."""
    machines = [each.get("CPU", 0.0) for each in cluster.machines()]
    shares = range(cpus // workers, 0, -1)
    return next((share for share in shares if sum(machine // share for machine in machines) >= workers), 1)


def fit(
    spec: RunSpec,
    source: Source,
    resources: Resources,
    stop_decisions: ActorHandle | None = None,
    callbacks: Sequence[UserCallback] = (),
    keep_all: bool = False,
) -> dict[str, Any]:
    """Train, or go on with the run of that name, to its end.

    Args:
        stop_decisions: asked after each epoch whether to stop.
        keep_all: keep all checkpoints, not only the best and the two newest.

    Returns:
        The last epoch's metrics; none where no epoch was completed.

    Raises:
        StorageError: a disk is full or read-only, or was away for too long.
        ray.train.TrainingFailedError: its workers died again and again without getting on.
        RunError: they hung again and again.
    """
    while True:
        before = wait_for(lambda: _step_to_begin_with(spec.folder), Folder.at(spec.storage), spec.train.storage_minutes)
        try:
            _trainer(spec, source, resources, stop_decisions, callbacks, keep_all).fit()
            return in_storage(spec, lambda: _last_metrics(spec.folder))
        except TrainingFailedError as error:
            if refused := _refusal(error):
                raise StorageError.of(refused) from error
            # where the storage is away, no checkpoint is there, and the run would begin anew
            if in_storage(spec, lambda: newest_step(spec.folder)) == before:
                if spec.folder.exists(STALLED):
                    raise RunError(spec.folder.read(STALLED).decode()) from error
                if lost := _lost_workers(error):
                    raise RunError(
                        f"{in_words(lost)}, {1 + RESTARTS} times without a new checkpoint in between. Where memory is "
                        "short, lower train.micro_batch or --workers"
                    ) from error
                raise
            log.warning("run %s lost its workers, but got on before it did: it is started again", spec.name)


def _fit_alone(spec: RunSpec, source: Source, stop_decisions: ActorHandle, keep_all: bool) -> None:
    """As `fit`, of one worker, in this process. What a storage refuses for a moment is tried again, as workers that are
    processes of their own would be started again."""
    failures = 0
    while True:
        before = in_storage(spec, lambda: _step_to_begin_with(spec.folder))
        try:
            train_alone(spec, source, stop_decisions, keep_all, tune.report)
            return
        except OSError as error:
            failures = 1 + failures if in_storage(spec, lambda: newest_step(spec.folder)) == before else 1
            if failures > RESTARTS or not leaves_nothing(spec.train):
                if is_refusal(error):
                    raise StorageError.of(error) from error
                raise
            log.warning("run %s met an error of a disk (%s): it goes on from its newest checkpoint", spec.name, error)
            if is_denial(error):
                clock.sleep(BELIEVED / RESTARTS)


def in_storage(spec: RunSpec, action: Callable[[], Done]) -> Done:
    """Do something in a run's storage, which is there once the run has begun; one that is away is waited for.

    Raises:
        StorageError: it refuses, or is away for too long.
    """
    storage = Folder.at(spec.storage)

    def act() -> Done:
        require_there(storage)
        return action()

    return wait_for(act, storage, spec.train.storage_minutes)


def _step_to_begin_with(run: Folder) -> int:
    """That of the newest checkpoint; what an earlier attempt noted is removed."""
    run.delete(STALLED)
    # where an earlier raymed had Ray Train keep the checkpoints: Ray refuses to start once one of that list is gone
    run.delete(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    return newest_step(run)


def _last_metrics(run: Folder) -> dict[str, Any]:
    """Of the newest checkpoint; one that the run's end cut short says nothing."""
    checkpoints = map(run.child, reversed(checkpoint_names(run)))
    newest = next((each for each in checkpoints if each.exists(PROGRESS)), None)
    return {} if newest is None else next(reversed(read_history(newest)), {})


def _refusal(error: TrainingFailedError) -> OSError | None:
    """What a worker, or Ray Train itself, was refused by a disk."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    causes = [cause_of(failure) for failure in failures if failure is not None]
    return next((cause for cause in causes if isinstance(cause, OSError) and is_refusal(cause)), None)


def _lost_workers(error: TrainingFailedError) -> dict[int, Exception]:
    """The workers whose processes died, by their ranks."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return {rank: failure for rank, failure in failures.items() if isinstance(cause_of(failure), RayActorError)}


def _trainer(
    spec: RunSpec,
    source: Source,
    resources: Resources,
    stop_decisions: ActorHandle | None,
    callbacks: Sequence[UserCallback],
    keep_all: bool,
) -> Trainer:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL)
    trainer = Trainer(
        _train_worker,
        train_loop_config={"spec": spec, "source": source, "stop_decisions": stop_decisions, "keep_all": keep_all},
        torch_config=(OneMachine if is_own() else TorchConfig)(timeout_s=spec.train.collective_seconds),
        scaling_config=Placement.of(resources, spec.name, stop_decisions),
        run_config=RunConfig(
            name=spec.name,
            storage_path=Folder.at(spec.storage).uri,
            callbacks=[NoteTermination(), *callbacks],  # type: ignore[list-item]
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    trainer.has_dashboard = not is_own()
    return trainer


def _train_worker(config: dict[str, Any]) -> None:
    """Ray Train's entry into a worker; ``config`` holds the arguments of `train`."""
    seen = ray.train.get_context()
    ranks = seen.get_world_rank(), seen.get_world_size(), seen.get_local_rank(), seen.get_local_world_size()
    context = WorkerContext(*ranks, ray.train.torch.get_device(), ray.train.report, is_preempted)
    try:
        train(context, **config)
    finally:
        dist.destroy_process_group()  # leaving without it aborts now and then at exit


def fit_trial(
    config: dict[str, Any],
    sources: Mapping[str, Source],
    each: Resources,
    stop_decisions: ActorHandle,
    keep_all: bool,
) -> None:
    """A trial of Ray Tune: a run with every report passed on. It lives here because its process imports this module.

    Args:
        sources: where the rows of each prepared data set come from, by its URI.
        keep_all: see `fit`.
    """
    spec: RunSpec = config["spec"]
    try:
        # the run's folder would be made below the mount point of a storage that is away
        in_storage(spec, lambda: None)
        if suffices(each.workers):
            _fit_alone(spec, sources[spec.data], stop_decisions, keep_all)
        else:
            fit(spec, sources[spec.data], each, stop_decisions, [Reports(tune_queue())], keep_all)
    except CommonError as error:
        tune.report({FAILED: str(error), COMMON: 1.0})
