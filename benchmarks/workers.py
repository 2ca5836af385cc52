"""What a second worker and a fourth add: samples per second of each system at its default settings, one core a worker.

    python benchmarks/workers.py                                  # the figures of docs/log.md, on as many cores as workers
    python benchmarks/workers.py --systems lung --counts 1,2 --epochs 2 --patients 24   # to try it

Phantom patients, trained by Ray Train as jobs train them. Of each run the median epoch is taken, without the first. `busy`
is the share of the workers' time that the division of the global batch leaves for work, `repeats` that of micro-batches
that do not count. More workers than the machine has cores say nothing about speed.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jsonargparse import auto_cli
from machine import show

from raymed.cluster.connection import connect
from raymed.data.stream import stage
from raymed.models.settings import ClipModelSettings
from raymed.storage.folder import Folder
from raymed.systems.clip.options import ClipOptions
from raymed.systems.lung.options import LungOptions
from raymed.systems.options import SystemOptions
from raymed.systems.vitp.options import VitpOptions
from raymed.training.checkpoint import Progress, fetch_newest
from raymed.training.fit import Resources, fit

# CLIP's towers are those of configs/clip_xray.yaml: its default ones need files.
TOWERS = ClipModelSettings(image_encoder="resnet18", text_encoder="characters", embed_dim=128)
SYSTEMS: dict[str, Callable[..., SystemOptions]] = {
    "lung": LungOptions,
    "clip": partial(ClipOptions, size=112, model=TOWERS),
    "vitp": VitpOptions,
}


def main(
    folder: str = "runs/benchmark-workers",
    systems: str = "lung,clip,vitp",
    counts: str = "1,2,4",
    epochs: int = 4,
    patients: int = 60,
) -> None:
    """Measure each system with each number of workers.

    Args:
        folder: Where patients, prepared data and runs go.
        systems: Which, separated by commas.
        counts: Numbers of workers, separated by commas; the first is what the others are compared with.
        epochs: Epochs of each run, at least two.
        patients: Phantom patients.
    """
    connect()
    figures, lines = {}, []
    for system in systems.split(","):
        options = SYSTEMS[system](storage=folder)
        options = dataclasses.replace(options, phantom=dataclasses.replace(options.phantom, patients=patients))
        prepared = options.prepared()
        train = dataclasses.replace(options.train, epochs=epochs)
        template = dataclasses.replace(options.spec(prepared), train=train)
        staged = stage(prepared, template.all_rows(prepared))
        rates: dict[int, float] = {}
        for asked in map(int, counts.split(",")):
            workers = template.helpful(asked)
            spec = dataclasses.replace(template, name=f"{system}-{asked}", workers=workers)
            Folder.at(folder).delete(spec.name)
            fit(spec, staged, Resources(workers, workers, 1, gpu=False))
            with tempfile.TemporaryDirectory() as temporary:
                newest = fetch_newest(spec.folder, Path(temporary))
                assert newest is not None
                history = Progress.read(newest).history[1:]
            rates[asked] = statistics.median(epoch["records_per_second"] for epoch in history)
            linear = rates[asked] / next(iter(rates.values())) / workers
            busy, repeats = history[-1]["worker_efficiency"], history[-1]["filler"]
            figures[spec.name] = {
                "rate": rates[asked],
                "linear": linear,
                "busy": busy,
                "repeats": repeats,
                "workers": workers,
            }
            lines.append(
                f"{system:<5} {asked} workers, {workers} taken: {rates[asked]:.1f} {template.sampling.noun}/s, "
                f"{linear:.2f} x linear; busy {busy:.0%}, repeats {repeats:.0%}"
                + ("" if workers <= (os.cpu_count() or 1) else " (more than cores)")
            )
    show(f"{patients} phantom patients, {epochs} epochs", lines, figures)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
