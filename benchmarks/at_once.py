"""Trials an hour of a search of small networks that share a card, against one at a time; and how busy each way keeps it.

    python benchmarks/at_once.py --device cuda       # part of make gpu-check: eight trials, each with an eighth of the card
    python benchmarks/at_once.py --trials 2 --patients 12 --size 56 --preset tiny     # seconds, to try it on a CPU

The trials are the first of configs/lung_xray.yaml (`small-cnn` and `efficientnet-lite0` at 112 pixels, side by side) on
phantom patients, in processes that stay, as a search's do: each has trained once before it is timed, so that neither imports
nor the device's start are counted, but the data's, the network's and the checkpoints' time is. One at a time has the whole
card and all CPUs. Busy is the share of the time in which the card computed anything, as nvidia-smi tells it once a second;
of a CPU, of all its cores.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import ray
import torch
import yaml
from jsonargparse import auto_cli
from machine import open_device, show

from raymed.cluster.connection import connect
from raymed.data.phantom import PhantomSettings
from raymed.data.plan import SliceSettings
from raymed.data.stream import Staged, stage
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import AugmentSettings
from raymed.storage.folder import Folder
from raymed.systems.lung.recipe import LungRecipe
from raymed.systems.options import prepare_phantoms
from raymed.training.lone_worker import train_alone
from raymed.training.loop import FAILED
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec

CONFIG = Path(__file__).parent.parent / "configs" / "lung_xray.yaml"
EXACT = 10_000  # parts of a card that Ray tells apart


class Trial:
    """The process of a search's trials."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def train(self, spec: RunSpec, source: Staged) -> None:
        """Train to the end.

        Raises:
            RuntimeError: it ended before.
        """
        reports: list[dict[str, Any]] = []
        train_alone(spec, source, None, False, reports.append)
        if FAILED in reports[-1]:
            raise RuntimeError(reports[-1][FAILED])


def main(
    folder: str = "runs/benchmark-at-once",
    trials: int = 8,
    rounds: int = 2,
    patients: int = 96,
    size: int = 112,
    epochs: int = 3,
    preset: str = "",
    device: str = "cpu",
) -> None:
    """Train one trial after the other, then as many at once.

    Args:
        folder: Where phantom patients are kept.
        trials: At once.
        rounds: Trials of each process, one after the other, that are timed.
        patients: How many, of 8 slices.
        size: Side of what the network takes.
        epochs: Of a trial.
        preset: The network, in place of the configuration's.
        device: cpu or cuda.
    """
    storage = Folder.at(str(Path(folder).resolve()))
    connect()
    prepared = prepare_phantoms(storage, PhantomSettings(patients=patients, size=size, slices=(8, 8)), size)
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    model = ModelSettings(preset=preset) if preset else ModelSettings(**config["model"])
    augment = AugmentSettings(**config["augment"])
    recipe = LungRecipe.for_data(prepared.labels, size, model, augment=augment)
    train = TrainSettings(**config["train"] | {"epochs": epochs, "precision": "auto"})
    with tempfile.TemporaryDirectory() as runs:
        spec = RunSpec("trial", runs, prepared.folder.uri, recipe, train, SliceSettings(choice="all"))
        source = stage(prepared, spec.all_rows(prepared))
        ways = [timed(count, rounds, spec, source, device) for count in (1, trials)]
    alone, together = ways
    ratio = together["trials_an_hour"] / alone["trials_an_hour"]
    lines = [
        f"{each['at_once']} at once: {each['trials_an_hour']:6.0f} trials an hour, one in {each['seconds']:.1f} s"
        + ("" if each["busy"] is None else f", the device busy for {each['busy']:.0%} of the time")
        for each in ways
    ]
    lines.append(f"{ratio:.2f} times the trials an hour (goal on a card: 5 times, busy for 80 %)")
    show(
        f"trials that share a device, {preset or config['model']['preset']} at {size} pixels",
        lines,
        {
            "alone": alone,
            "together": together,
            "times": ratio,
        },
        open_device(device),
    )


def timed(count: int, rounds: int, spec: RunSpec, source: Staged, device: str) -> dict[str, Any]:
    """So many processes at once, each of which trains once to be warm, and then so many trials."""
    share = EXACT // count / EXACT if device == "cuda" else 0
    threads = max(1, (os.cpu_count() or 1) // count)
    began: Any = ray.remote(num_cpus=0, num_gpus=share)(Trial)
    processes = [began.remote(threads) for _ in range(count)]

    def named(number: int, trial: int) -> RunSpec:
        return dataclasses.replace(spec, name=f"trial-{count}-{number}-{trial}", seed=trial)

    ray.get([process.train.remote(named(number, 0), source) for number, process in enumerate(processes)])
    with Busy(device) as busy:
        started, ends = time.perf_counter(), list[float]()
        left = {
            process.train.remote(named(number, trial), source)
            for trial in range(1, rounds + 1)
            for number, process in enumerate(processes)
        }
        while left:
            (ended, *_), rest = ray.wait([*left])
            ray.get(ended)
            left = set(rest)
            ends.append(time.perf_counter() - started)
    for process in processes:
        ray.kill(process)
    found = {
        "at_once": count,
        "trials_an_hour": len(ends) * 3600 / ends[-1],
        "seconds": ends[-1] / rounds,
        "busy": busy.share,
    }
    print(found, file=sys.stderr)
    return found


class Busy:
    """While entered, looks at the device once a second.

    Attributes:
        share: of the time in which it computed; None where nobody says.
    """

    def __init__(self, device: str) -> None:
        self._seen, self._over = list[float](), threading.Event()
        self._look = of_card if device == "cuda" else of_processors
        self._thread = threading.Thread(target=self._watch, name="busy", daemon=True)

    def __enter__(self) -> Busy:
        psutil.cpu_percent()  # which counts from its last call
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def share(self) -> float | None:
        return statistics.fmean(self._seen) / 100 if self._seen else None

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            seen = self._look()
            if seen is None:
                return
            self._seen.append(seen)


def of_processors() -> float:
    """Per cent of the CPUs' time that was computed in since the last call."""
    return psutil.cpu_percent()


def of_card() -> float | None:
    """Per cent of the last second in which the first card computed; None where nvidia-smi does not say."""
    card = torch.cuda.get_device_properties(0).uuid
    asked = ["nvidia-smi", f"--id=GPU-{card}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
