"""The loop that anybody would write: torch's DistributedDataParallel around a run's network, without Ray and DeepSpeed.

Its pictures are encoded beforehand, its batch norms see their own worker's part of a batch only, and it knows no checkpoint:
how it gets on with a second worker is what a machine allows. Where workers are `silent` they sum nothing at all, and each
trains a network of its own: no way of dividing the work gets more out of the machine.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from raymed.data.micro_batches import Division
from raymed.recipes.recipe import TrainingPass
from raymed.training.heap import keep_freed_memory
from raymed.training.spec import RunSpec

WARM_UP = 3
DISTINCT = 6  # global batches, taken in turn


def plain_rate(spec: RunSpec, workers: int, cores: Sequence[int], steps: int = 20, silent: bool = False) -> float:
    """Records per second of so many workers that train `spec`'s network, one on each of `cores`; of the median step."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _train, (spec, workers, cores, steps, folder, silent), workers, start_method="spawn"
        )
        return float((Path(folder) / "rate").read_text())


def _train(worker: int, spec: RunSpec, workers: int, cores: Sequence[int], steps: int, folder: str, silent: bool) -> None:
    os.sched_setaffinity(0, {cores[worker % len(cores)]})
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=worker, world_size=workers)
    torch.manual_seed(spec.seed)
    module = spec.recipe.build().train()
    optimizer = torch.optim.AdamW([{"params": group.parameters} for group in spec.recipe.groups(module)], lr=spec.train.lr)
    network = module if silent or workers == 1 else DistributedDataParallel(module, broadcast_buffers=False)
    prepared, divided = spec.open_data(), Division(spec.train.packs_at_once, workers)
    whole = [batch for batch in spec.plan(prepared, 0).batches if len(batch) == spec.train.global_batch][:DISTINCT]
    batches = [
        [
            spec.recipe.encode(prepared.read([row for pack in micro.packs for row in pack]), TrainingPass(spec.seed, 0)).to(
                torch.device("cpu")
            )
            for micro in divided.share(batch, worker)
        ]
        for batch in whole
    ]
    records = statistics.mean(sum(len(pack) for pack in batch) for batch in whole)
    seconds = []
    dist.barrier()  # silent workers, too, compute at the same time
    for shares in islice(cycle(batches), WARM_UP + steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        for micro, batch in enumerate(shares, 1):
            last = micro == len(shares)
            with nullcontext() if last or not isinstance(network, DistributedDataParallel) else network.no_sync():
                spec.recipe.compute_loss(network, batch).mean(batch.units, 1 / len(shares)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), spec.train.clip)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    if worker == 0:
        (Path(folder) / "rate").write_text(str(records / statistics.median(seconds[WARM_UP:])))
    dist.barrier()
    os._exit(0)  # the end of a process group now and then waits for a thread of its own that waits for Python
