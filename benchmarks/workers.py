"""What a second worker and a fourth add: samples per second of each system at its default settings, one core a worker.

    python benchmarks/workers.py                                  # the figures of docs/log.md, on as many cores as workers
    python benchmarks/workers.py --systems lung --counts 1,2 --epochs 2 --patients 24   # to try it

Phantom patients, trained by Ray Train as jobs train them; a run has as many cores as workers, for Ray and for the reading of
its data, too. Of each run the median epoch is taken, without the first. `plain` is the same for the loop of plain_loop.py,
and `silent` for that loop without a word between its workers: what the machine gives to so many processes, which have its
caches and memory in common. `of silent` is how much of that ours have of linear. `busy` is the share of the workers' time
that the division of the global batch leaves for work, `repeats` that of micro-batches that do not count. More workers than
the machine has cores say nothing about speed.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ray
from jsonargparse import auto_cli
from machine import show
from plain_loop import plain_rate

from raymed.cluster.connection import connect
from raymed.data.prepared import Prepared
from raymed.data.stream import stage
from raymed.models.settings import ClipModelSettings
from raymed.storage.folder import Folder
from raymed.systems.clip.options import ClipOptions
from raymed.systems.lung.options import LungOptions
from raymed.systems.options import SystemOptions
from raymed.systems.vitp.options import VitpOptions
from raymed.training.checkpoint import Progress, fetch_newest
from raymed.training.fit import Resources, fit
from raymed.training.spec import RunSpec

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
    norm_group: int = 0,
) -> None:
    """Measure each system with each number of workers.

    Args:
        folder: Where patients, prepared data and runs go.
        systems: Which, separated by commas.
        counts: Numbers of workers, separated by commas; the first is what the others are compared with.
        epochs: Epochs of each run, at least two.
        patients: Phantom patients.
        norm_group: As `train.norm_group`; 0 for the system's own.
    """
    cores = sorted(os.sched_getaffinity(0))
    figures, lines = {}, []
    for system in systems.split(","):
        options = SYSTEMS[system](storage=folder)
        options = dataclasses.replace(options, phantom=dataclasses.replace(options.phantom, patients=patients))
        with _ray_on(cores):
            prepared = options.prepared()
        train = dataclasses.replace(options.train, epochs=epochs, norm_group=norm_group or options.train.norm_group)
        template = dataclasses.replace(options.spec(prepared), train=train)
        rates: list[float] = []
        plain: list[float] = []
        silent: list[float] = []
        taken: list[int] = []
        for asked in map(int, counts.split(",")):
            taken.append(workers := template.helpful(asked))
            spec = dataclasses.replace(template, name=f"{system}-{asked}", workers=workers)
            with _ray_on(cores[:workers]):
                epoch = _last_epoch(spec, prepared)
            rates.append(epoch["records_per_second"])
            plain.append(plain_rate(spec, workers, cores))
            silent.append(plain_rate(spec, workers, cores, silent=True) if workers > 1 else plain[-1])
            linear, allowed, most = (each[-1] / each[0] * taken[0] / workers for each in (rates, plain, silent))
            figures[spec.name] = {
                "rate": rates[-1],
                "linear": linear,
                "plain_rate": plain[-1],
                "plain_linear": allowed,
                "silent_rate": silent[-1],
                "silent_linear": most,
                "of_silent": linear / most,
                "busy": epoch["worker_efficiency"],
                "repeats": epoch["filler"],
                "workers": workers,
            }
            lines.append(
                f"{system:<5} {asked} workers, {workers} taken: {rates[-1]:.1f} {template.sampling.noun}/s, "
                f"{linear:.2f} x linear; plain {plain[-1]:.1f}/s, {allowed:.2f} x linear; "
                f"silent {silent[-1]:.1f}/s, {most:.2f} x linear; {linear / most:.2f} of silent; "
                f"busy {epoch['worker_efficiency']:.0%}, repeats {epoch['filler']:.0%}"
                + ("" if workers <= len(cores) else " (more than cores)")
            )
    show(f"{patients} phantom patients, {epochs} epochs", lines, figures)


@contextmanager
def _ray_on(cores: Sequence[int]) -> Iterator[None]:
    """A Ray of its own, whose processes share these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        connect()
        yield
    finally:
        ray.shutdown()
        os.sched_setaffinity(0, before)


def _last_epoch(spec: RunSpec, prepared: Prepared) -> dict[str, float]:
    """Metrics of a run's last epoch, with the median rate of all but the first."""
    Folder.at(spec.storage).delete(spec.name)
    fit(spec, stage(prepared, spec.all_rows(prepared)), Resources(spec.workers, spec.workers, 1, gpus=0))
    with tempfile.TemporaryDirectory() as temporary:
        newest = fetch_newest(spec.folder, Path(temporary))
        assert newest is not None
        history = Progress.read(newest).history[1:]
    return history[-1] | {"records_per_second": statistics.median(epoch["records_per_second"] for epoch in history)}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
