"""What the controller of a run passes on of it: its reports, and the loss of a worker in our words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.util.queue import Queue

from raymed.storage.folder import Folder
from raymed.training.checkpoint import newest_step
from raymed.training.preemption import Preempted
from raymed.training.step_log import STEPS

LOST = "lost"  # what became of a worker; among what a run reports


class Reports(UserCallback):
    """Puts everything into a queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue, self._step = queue, 0  # the last one that was heard of

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        for row in metrics[0].get(STEPS, []):
            self._step = int(row["global_step"])
        self._queue.put(metrics[0].copy())

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        run = Folder.at(run_context.run_config.storage_path).child(run_context.run_config.name)
        try:
            where = f"it goes on from step {newest_step(run)}"
            if self._step:
                where = f"its last word came from step {self._step}, and it goes on from step {newest_step(run)}"
        except OSError:  # Ray Train would take it for an error of its own, and forget the worker's
            where = f"it goes on once {run.uri} answers again"
        self._queue.put({LOST: f"{in_words(worker_exceptions)}; {where}"})


def cause_of(error: Exception) -> Exception:
    """What Ray Train has wrapped: what a worker raised, or the death of its process."""
    cause: Exception = getattr(error, "_base_exc", getattr(error, "health_check_failure", error))
    return cause


def in_words(errors: Mapping[int, Exception]) -> str:
    """What happened to workers, by their ranks, as a person would say it."""
    causes = {rank: cause_of(error) for rank, error in errors.items()}
    lost = [rank for rank, cause in causes.items() if isinstance(cause, RayActorError)]
    if lost:
        return f"worker {', '.join(map(str, sorted(lost)))} was lost: its process was killed, or its machine is gone"
    rank, cause = min(causes.items(), key=lambda item: item[0])
    if isinstance(cause, Preempted):
        return "its machine is being taken away, and a checkpoint was saved"
    return f"worker {rank} failed ({type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''})"
