"""Epochs an hour of a head on a frozen backbone: its features computed in every step, and computed once.

    python benchmarks/frozen.py                                                      # phantom patients, minutes on two cores
    python benchmarks/frozen.py --data PREPARED --epochs 3
    python benchmarks/frozen.py --patients 8 --size 32 --preset tiny --epochs 2     # seconds, to try it

Both ways are whole runs of `raymed.training.fit`, checkpoints and validations included, one after the other on one worker;
an hour holds as many epochs as the mean of all epochs but the first says. Before the second way's first epoch the features
are computed; how long that takes is told beside it.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from machine import show

from raymed.cluster.connection import connect
from raymed.data.phantom import PhantomSettings
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.data.stream import open_reader
from raymed.models.settings import LITE, ModelSettings
from raymed.recipes.settings import AugmentSettings
from raymed.storage.folder import Folder
from raymed.systems.lung.recipe import LungRecipe
from raymed.systems.options import prepare_phantoms
from raymed.training.checkpoint import checkpoint_names, read_history
from raymed.training.fit import fit, resources
from raymed.training.frozen import Source, keep_features
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec

WANTED = 5.0  # times as many epochs


def main(
    folder: str = "runs/benchmark-frozen",
    data: str | None = None,
    patients: int = 48,
    size: int = 112,
    preset: str = LITE,
    epochs: int = 4,
    cpus: int = 1,
) -> None:
    """Train a head in each way, and compare rates and losses.

    Args:
        folder: Where runs and phantom patients are made and kept.
        data: Prepared data, in place of phantom patients.
        patients: How many phantom patients, of 30 to 35 slices.
        size: Side of their pictures, in pixels.
        preset: The backbone.
        epochs: Of each run; at least 2.
        cpus: Of the worker.
    """
    connect()
    root = Folder.at(Path(folder).resolve())
    prepared = Prepared.open(data) if data else prepare_phantoms(root, PhantomSettings(patients=patients, size=256), size)
    recipe = LungRecipe.for_data(
        prepared.labels, prepared.size, ModelSettings(preset, freeze_vision=True), augment=AugmentSettings("none")
    )
    train, slices = TrainSettings(epochs=epochs, lr=3e-3), SliceSettings(choice="all")
    spec = RunSpec("", root.uri, prepared.folder.uri, recipe, train, slices)
    rows, each = open_reader(prepared, spec.all_rows(prepared), train.storage_minutes), resources(1, cpus)
    run = uuid.uuid4().hex[:6]
    began = time.perf_counter()
    kept = keep_features([spec], rows, False, each, 1)
    once = time.perf_counter() - began
    ways: dict[str, Source] = {"in every step": rows, "once": kept}
    histories = {way: _trained(replace(spec, name=f"{run}-{way.replace(' ', '-')}"), ways[way], cpus) for way in ways}
    rates = {
        way: 3600 / float(np.mean([epoch["seconds"] + epoch["pause_seconds"] for epoch in history[1:]]))
        for way, history in histories.items()
    }
    lines = [f"{way:14} {rate:9.1f} epochs an hour" for way, rate in rates.items()]
    faster = rates["once"] / rates["in every step"]
    differences = {
        name: max(abs(a[name] / b[name] - 1) for a, b in zip(*histories.values(), strict=True))
        for name in ("train_loss", "val_loss")
    }
    last = {way: history[-1]["val_loss"] for way, history in histories.items()}
    lines += [
        f"{faster:.1f} times as many epochs ({WANTED:.0f} wanted)",
        f"the features of {len(spec.all_rows(prepared))} slices took {once:.1f} s, once",
        "val_loss of the last epoch: " + ", ".join(f"{loss:.6f} {way}" for way, loss in last.items()),
        "largest relative difference in any epoch: " + ", ".join(f"{name} {each:.1e}" for name, each in differences.items()),
    ]
    title = f"{preset} frozen, {prepared.size} pixels, {epochs} epochs of {len(prepared.rows('train'))} slices, {cpus} CPU"
    show(title, lines, rates | {"times": faster, "once_seconds": once} | differences)


def _trained(spec: RunSpec, source: Source, cpus: int) -> list[dict[str, float]]:
    """The metrics of each epoch."""
    fit(spec, source, resources(1, cpus))
    return list(read_history(spec.folder.child(checkpoint_names(spec.folder)[-1])))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
