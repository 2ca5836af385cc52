"""jobs/train_lung.py under Ray with ZeRO 1, 2 and 3, and Ray Train's own worker: the same losses.

    python tests/gpu/run.py --parts zero

A single run trains in the process of its trial; with several workers, and on a cluster, Ray Train starts them, which is
tried here with one. Losses may differ by 2 %: kernels that add in another order round to another bf16.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import ray
from jsonargparse import auto_cli
from machine import open_device, show
from small_lung import open_data, small_lung
from train_lung import main as train_lung

from raymed.data.stream import stage
from raymed.storage.folder import Folder
from raymed.training.checkpoint import read_history
from raymed.training.fit import fit, resources

ALIKE = 0.02  # relative


def main(device: str = "cuda") -> None:
    """Train in each way.

    Args:
        device: cuda, or cpu to try it.
    """
    losses: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for zero_stage in (1, 2, 3):
        started = time.monotonic()
        outcome = train_lung(small_lung(device, f"zero-{zero_stage}", zero_stage=zero_stage))
        (first, *_) = read_history(Folder.at(outcome.data["checkpoint"]))
        losses[f"ZeRO {zero_stage}"] = [first["train_loss"], first["val_loss"]]
        seconds[f"ZeRO {zero_stage}"] = time.monotonic() - started
    options = small_lung(device, "ray-train", epochs=1, zero_stage=2)
    prepared, started = open_data(options), time.monotonic()
    spec = dataclasses.replace(options.spec(prepared), name=options.name)
    metrics = fit(spec, stage(prepared, spec.all_rows(prepared)), resources(1, 1))
    seconds["Ray Train"] = time.monotonic() - started
    ray.shutdown()
    (expected, *others) = losses.values()
    wrong = any(abs(value / own - 1) > ALIKE for each in others for value, own in zip(each, expected, strict=True))
    wrong |= not 0 < metrics["train_loss"] < 2 * expected[0]  # another schedule: it has one epoch
    lines = [
        f"{name}: train_loss {train:.5f}, val_loss {val:.5f} after an epoch, {seconds[name]:.0f} s with its start"
        for name, (train, val) in losses.items()
    ]
    lines.append(f"Ray Train: train_loss {metrics['train_loss']:.5f}, {seconds['Ray Train']:.0f} s")
    lines.append("NOT ALIKE" if wrong else f"alike within {ALIKE:.0%}")
    show("ZeRO under Ray", lines, {"losses": losses, "seconds": seconds}, open_device(device))
    sys.exit(wrong)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
