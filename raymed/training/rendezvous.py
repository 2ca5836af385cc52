"""How the workers of a run meet on one machine: in a file, so that nothing of it listens beyond loopback.

Ray Train has them meet at a server of torch's (TCPStore) in worker 0, which listens on every interface.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig

from raymed.compat.ray_train import BaseWorkerGroup, TorchBackend, join_process_group, set_ranks

RANKS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
NO_SERVER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # DeepSpeed would look for MPI without them; nobody connects


@dataclass
class OneMachine(TorchConfig):
    """Ray Train's set-up of torch, for workers that are all on the machine of the run's controller."""

    @property
    def backend_cls(self) -> type[TorchBackend]:
        return _FileBackend


class _FileBackend(TorchBackend):
    _folder: TemporaryDirectory[str] | None = None  # readable for this user alone

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Let a group of workers meet, in a file of its own: that of workers who died still names them."""
        assert isinstance(backend_config, TorchConfig)
        self._folder = TemporaryDirectory(prefix="raymed-rendezvous-")
        on_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        worker_group.execute(set_ranks)
        worker_group.execute(_name_no_server)
        joining: list[Any] = [
            worker_group.execute_single_async(
                rank,
                join_process_group,
                backend="nccl" if on_gpus else "gloo",
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{self._folder.name}/store",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            if self._folder:
                self._folder.cleanup()


def meet_nobody(device: torch.device) -> None:
    """Be the only worker there is."""
    os.environ |= RANKS | NO_SERVER
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)


def _name_no_server() -> None:
    os.environ |= NO_SERVER
