"""A training run from the driver's side: Ray Train places the workers, keeps the checkpoints and restarts what dies."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from raymed.cluster import capacity
from raymed.data.stream import Staged, Streamed
from raymed.errors import UserError
from raymed.storage import Folder
from raymed.training.loop import RANK, FitSpec, train_worker

log = logging.getLogger("raymed")

RESTARTS = 2  # of a run whose worker died; an error of the run itself would only repeat


@dataclass(frozen=True)
class Resources:
    """What a worker occupies.

    Attributes:
        workers: Ray Train workers of one run.
        cpus: CPUs of each.
        gpu: Whether each takes a GPU: where the cluster has one (auto), always, or never.
    """

    workers: int
    cpus: int
    gpu: bool


def resources(workers: int, cpus_per_worker: int) -> Resources:
    """Check that the cluster can hold a run.

    Raises:
        UserError: there are fewer CPUs or GPUs than the workers need.
    """
    have = capacity(ray.cluster_resources())
    gpu = have["GPU"] > 0
    if workers * cpus_per_worker > have["CPU"]:
        raise UserError(
            f"{workers} workers of {cpus_per_worker} CPUs do not fit into this cluster's {have['CPU']:.0f} CPUs: "
            "lower --workers or --cpus-per-worker, or add nodes"
        )
    if gpu and workers > have["GPU"]:
        raise UserError(f"{workers} workers need a GPU each and the cluster has {have['GPU']:.0f}: lower --workers")
    return Resources(workers, cpus_per_worker, gpu)


def fit(
    spec: FitSpec,
    source: Staged | Streamed,
    resources: Resources,
    verdicts: ActorHandle | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> dict[str, Any]:
    """Train, or go on with the run of that name, to its end.

    Args:
        verdicts: asked after each epoch whether to stop.

    Returns:
        The last epoch's metrics.

    Raises:
        RunError: the run failed, e.g. its loss became infinite.
        ray.train.TrainingFailedError: its workers died more often than they may be restarted.
    """
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"spec": spec, "source": source, "verdicts": verdicts},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpu,
            resources_per_worker={"CPU": resources.cpus} | ({"GPU": 1} if resources.gpu else {}),
        ),
        run_config=RunConfig(
            name=spec.name,
            storage_path=Folder.at(spec.storage).uri,
            callbacks=list(callbacks),  # type: ignore[arg-type]
            failure_config=FailureConfig(max_failures=RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=RANK, checkpoint_score_order="max"),
        ),
    )
    return trainer.fit().metrics or {}


def fit_trial(
    config: dict[str, Any], sources: Mapping[str, Staged | Streamed], each: Resources, verdicts: ActorHandle
) -> None:
    """A trial of Ray Tune: `fit`, with every report passed on. It lives here because its process imports this module.

    Args:
        sources: where the rows of each prepared data set come from, by its URI.
    """
    spec: FitSpec = config["spec"]
    fit(spec, sources[spec.data], each, verdicts, [TuneReportCallback()])
