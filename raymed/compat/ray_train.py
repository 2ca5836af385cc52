"""The private parts of Ray Train and Ray Tune."""

from __future__ import annotations

import signal
import threading
from typing import Any

from ray.train import Result
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.execution.callback import RayTrainCallback, WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.queue import Queue

__all__ = [
    "CHECKPOINT_MANAGER_SNAPSHOT_FILENAME",
    "SEEN",
    "BaseWorkerGroup",
    "TorchBackend",
    "Trainer",
    "WorkerCallback",
    "is_drained",
    "join_process_group",
    "set_ranks",
    "tune_queue",
]

SEEN = "2.60.0"

# `CHECKPOINT_MANAGER_SNAPSHOT_FILENAME` is the list of Ray Train's own checkpoints, which an earlier raymed let it keep.
# `WorkerCallback` (v2/_internal/execution/callback.py) is called in a worker's main thread, where signals are handled;
# `ray.train.UserCallback`, which is public, is called in the controller only.
# The rest of these is how Ray Train sets torch up (ray/train/torch/config.py): for workers that meet in a file, see
# `raymed/training/rendezvous.py`, a backend does the same with another address.
TorchBackend = _TorchBackend
set_ranks = _set_torch_distributed_env_vars
join_process_group = _setup_torch_process_group


class Trainer(TorchTrainer):
    """Ray Train's, without the helper processes that have nothing to do in our runs.

    Our workers read their data themselves, so there are no data sets to manage. The cleaner asks the dashboard's server
    whether controllers live; where Ray has no dashboard it gets no answer, and every run would wait 12 s for its end. There
    is no setting that leaves them out (v2/api/data_parallel_trainer.py, `_create_default_callbacks`).

    Attributes:
        has_dashboard: whether Ray has one.
    """

    has_dashboard = True

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        idle = (DatasetsCallback,) if self.has_dashboard else (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, idle)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        """Puts the handler of Ctrl-C back: Ray Train leaves one of its own, which keeps the controller alive."""
        before = signal.getsignal(signal.SIGINT)
        try:
            return super()._initialize_and_run_controller(**settings)
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)


def tune_queue() -> Queue:
    """Where a run within a trial puts what Ray Tune is to hear. `TuneReportCallback`, which is public, passes on what its
    first worker reports, and no more: nothing of a worker that was lost (ray/tune/integration/ray_train.py)."""
    queue: Queue = TuneReportCallback()._training_actor_item_queue
    return queue


def is_drained() -> bool:
    """Whether this worker's machine is being drained (v2/_internal/execution/context.py). No public call tells a worker."""
    return get_train_context().preemption_context.preemption_info is not None
