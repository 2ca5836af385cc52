"""Slices per second from the stream to what the model takes, against a torch DataLoader on the same two cores.

    python benchmarks/ingest.py          # the figures of docs/log.md: 10 minutes and 4 GB of disk on two CPU cores
    python benchmarks/ingest.py --patients 12 --source_size 64 --size 56 --folder /tmp/ingest    # seconds, to try it
    python benchmarks/ingest.py --device cuda    # into a GPU's memory, which normalises

- loader: a DataLoader with 2 workers that opens, resizes and normalises the patients' PNGs, as training scripts do.
- staged: Ray Data decodes the prepared slices once a search into the object store; every epoch of every trial reads there.
- streamed: Ray Data reads the prepared shards anew each epoch, for sets that do not fit; its start is counted.
- varied: staged, and varied as each preset says: on a CPU as it is encoded, on a GPU when it is there.

The loader hands out normalised float32. The recipe hands out uint8, which its network normalises where it computes; both
rates are given, with that step (`normalised`) and without. `in memory` is the rate of that step on arrays that are already
there: no stream can be faster. `check` is what it takes to compare staged records with the index, as a share of
the processor time of all of staging, by each function that pictures are known by.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from jsonargparse import auto_cli
from machine import open_device, show
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from raymed.cluster.connection import connect
from raymed.data.image import ImageSettings
from raymed.data.integrity import describe
from raymed.data.phantom import PhantomSettings, write_phantoms
from raymed.data.plan import plan_epoch
from raymed.data.prepare import PrepareSettings, prepare
from raymed.data.record import BLAKE3, DIGESTS
from raymed.data.stream import Staged, Streamed, ahead, stage
from raymed.models.backbones import IMAGENET_MEAN, IMAGENET_STD, InputNorm
from raymed.recipes.augment import AugmentSettings
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.systems.lung.recipe import LungRecipe
from raymed.training.feed import Feed

MICRO_BATCH = 16
CORES = 2
Plan = Sequence[Sequence[int]]


def main(
    folder: str = "runs/benchmark-ingest",
    patients: int = 100,
    source_size: int = 512,
    size: int = 448,
    epochs: int = 3,
    augment: str = "light,ct",
    device: str = "cpu",
) -> None:
    """Make and prepare phantom patients, unless they are there, and read them in each way.

    Args:
        folder: Where the patients are made and kept.
        patients: How many, of 30 to 35 slices.
        source_size: Side of the PNGs, in pixels.
        size: Side of what the model takes.
        epochs: Epochs of each way.
        augment: Presets by which pictures are varied, separated by commas.
        device: That batches are brought to, all but the loader's: cpu or cuda.
    """
    pictures = Path(folder).resolve() / "patients"
    write_phantoms(pictures, PhantomSettings(patients=patients, size=source_size))
    connect()
    worker: Any = ray.remote(num_cpus=1, num_gpus=0.25 if device == "cuda" else 0)(Trial)
    settings = PrepareSettings(image=ImageSettings(size=size))
    prepared = prepare(pictures, f"{pictures.parent}/prepared", settings).prepared
    rows = prepared.rows("all")
    recipe = LungRecipe.for_data(prepared.labels, size, augment=AugmentSettings(preset="none"))
    plans = [plan_of(rows, epoch) for epoch in range(epochs)]

    loader = [load_pngs(sorted(pictures.glob("*/*/*.png")), size) for _ in range(epochs)]
    said("loader", loader)
    started, before = time.perf_counter(), processor_seconds()
    staged = stage(prepared, rows)
    staging, spent = time.perf_counter() - started, processor_seconds() - before
    checks = {function: check(staged, function) for function in DIGESTS}
    first, second = (worker.remote(staged, recipe, device) for _ in range(2))
    encoded = ray.get([first.epoch.remote(plan, False) for plan in plans])
    again = ray.get(second.epoch.remote(plans[0], False))
    normalised = ray.get([first.epoch.remote(plan, True) for plan in plans])
    in_memory = ray.get([first.in_memory.remote(plan) for plan in plans])
    varied = {preset: ray.get([first.epoch.remote(plan, True, preset) for plan in plans]) for preset in augment.split(",")}
    for trial in (first, second):
        ray.kill(trial)
    for name, seconds in (("staged", [staging, *encoded, again]), ("normalised", normalised), ("in memory", in_memory)):
        said(name, seconds)
    for preset, seconds in varied.items():
        said(f"varied, {preset}", seconds)
    streaming = worker.remote(Streamed(prepared.folder.uri), recipe, device)
    streamed = ray.get([streaming.epoch.remote(plan, False) for plan in plans])
    ray.kill(streaming)
    said("streamed", streamed)

    few = rows[: max(MICRO_BATCH, len(rows) // 10)]
    memory = {
        way: [ray.get(worker.remote(source, recipe, device).peak_memory.remote(plan_of(part, 0))) for part in (few, rows)]
        for way, source in (("staged", staged), ("streamed", Streamed(prepared.folder.uri)))
    }

    rates = {
        "loader": len(rows) / statistics.median(loader),
        "staged_epoch_1": len(rows) / (staging + encoded[0]),
        "staged": len(rows) / statistics.median(encoded[1:]),
        "staged_second_trial": len(rows) / again,
        "staged_normalised": len(rows) / statistics.median(normalised),
        **{f"varied_{preset}": len(rows) / statistics.median(seconds) for preset, seconds in varied.items()},
        "in_memory": len(rows) / statistics.median(in_memory),
        "streamed_epoch_1": len(rows) / streamed[0],
        "streamed": len(rows) / statistics.median(streamed[1:]),
    }
    reached = rates["staged_normalised"] / rates["in_memory"]
    lines = [
        f"{name.replace('_', ' '):20} {rate:8.0f} slices/s  {rate / rates['loader']:6.1f}x the loader"
        for name, rate in rates.items()
    ]
    lines += [
        f"check by {function}: {seconds / len(rows) * 1e3:.3f} ms a slice, "
        f"{seconds / (spent - checks[BLAKE3] + seconds):.1%} of the processor time of staging ({spent:.1f} s)"
        for function, seconds in checks.items()
    ]
    lines += [f"staged and normalised at {reached:.0%} of the rate at which arrays in memory are normalised"]
    lines += [
        f"{way}: peak memory of any worker {small / 2**20:.0f} MiB for {len(few)} slices, {large / 2**20:.0f} MiB for "
        f"{len(rows)}: {large / max(small, 2**20):.2f}x"
        for way, (small, large) in memory.items()
    ]
    figures = {"slices": len(rows), **rates, "check": checks, "memory": memory, "share_of_in_memory": reached}
    show(f"reading {len(rows)} slices of {size} pixels", lines, figures, open_device(device))


def processor_seconds() -> float:
    """Of this process and of all that it started, those that have ended aside."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def check(staged: Staged, function: str) -> float:
    """Processor seconds in which all staged records are described, as they are when they are staged; the least of three."""
    seconds = []
    for _ in range(3):
        spent = 0.0
        for block in staged.blocks:
            table = ray.get(block)
            started = time.process_time()
            describe(table, function)
            spent += time.process_time() - started
        seconds.append(spent)
    return min(seconds)


def said(name: str, seconds: Sequence[float]) -> None:
    """Progress, for the minutes until the end."""
    print(f"{name}: {', '.join(f'{each:.2f}' for each in seconds)} s", file=sys.stderr, flush=True)


def plan_of(rows: np.ndarray, epoch: int) -> Plan:
    """The rows of each micro-batch of an epoch."""
    return [
        [row for pack in batch for row in pack]
        for batch in plan_epoch([(row,) for row in rows.tolist()], MICRO_BATCH, 0, epoch, {}).batches
    ]


class Pictures(Dataset[torch.Tensor]):
    """PNG files as normalised float32 [3, size, size]."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size
        self.mean, self.std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        with Image.open(self.paths[place]) as file:
            picture = file.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)


def load_pngs(paths: Sequence[Path], size: int) -> float:
    """Seconds of an epoch."""
    started = time.perf_counter()
    for batch in DataLoader(Pictures(paths, size), MICRO_BATCH, shuffle=True, num_workers=CORES):
        assert batch.dtype == torch.float32
    return time.perf_counter() - started


class Trial:
    """A trial's worker, as far as reading goes."""

    def __init__(self, source: Staged | Streamed, recipe: LungRecipe, device: str) -> None:
        torch.set_num_threads(CORES)
        self.device = torch.device(device)
        self.source, self.recipe, self.normalise, self.feed = source, recipe, InputNorm(), Feed(self.device)
        self.reader = source.open()

    def epoch(self, plan: Plan, normalise: bool, preset: Any = "none") -> float:
        """Seconds of an epoch of pictures varied by a preset, the start of the reading included."""
        started = time.perf_counter()
        seen = 0
        for encoded in self._batches(plan, preset):
            batch = self.feed.deliver(encoded)
            if normalise:
                self.normalise(batch.tensors["pixels"], torch.float32)
            seen += len(batch.ids)
        self._wait()
        if seen != sum(map(len, plan)):
            raise RuntimeError(f"{seen} rows of {sum(map(len, plan))} were read")
        return time.perf_counter() - started

    def in_memory(self, plan: Plan) -> float:
        """Seconds in which plain torch normalises the same pixels."""
        batches = [batch.to(self.device).tensors["pixels"] for batch in self._batches(plan)]
        self._wait()
        started = time.perf_counter()
        for pixels in batches:
            self.normalise(pixels, torch.float32)
        self._wait()
        return time.perf_counter() - started

    def peak_memory(self, plan: Plan) -> int:
        """Most private bytes that this or any other process of Ray's workers held during two epochs.

        Blocks in the object store are not counted: they lie there once, however many trials read them.
        """
        ended, peak = threading.Event(), [0]

        def watch() -> None:
            while not ended.wait(0.05):
                peak[0] = max(peak[0], *private_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(2):
            self.epoch(plan, True)
        ended.set()
        watcher.join()
        return peak[0]

    def _wait(self) -> None:
        """Until the device has what it was given. Workers do not find the other modules of benchmarks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _batches(self, plan: Plan, preset: Any = "none") -> Iterator[Batch]:
        recipe = replace(self.recipe, augment=AugmentSettings(preset))
        return ahead(self.feed.prepare(recipe.encode(records, TrainingPass(0, 0))) for records in self.reader.read(plan))


def private_bytes() -> Iterator[int]:
    """Of every worker process of this machine's Ray."""
    for process in psutil.Process().parent().children():
        try:
            memory = process.memory_info()
            yield memory.rss - memory.shared  # blocks count as shared here; as "unique" they would count for who reads alone
        except psutil.Error:
            yield 0  # ended meanwhile


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
