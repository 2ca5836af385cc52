"""Whether a step waits for the card, and for how long a checkpoint holds training up; the copy is compared, byte by byte.

    python tests/gpu/run.py --parts waits

Steps run under torch's own check, which raises where the host waits for the card; it sees neither NCCL nor
`torch.cuda.synchronize`, which raises here by itself. The checkpoint's copy goes on during the next step, which is timed,
too.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from jsonargparse import auto_cli
from machine import open_device, process_group_of_one, show
from step import phantom_records

from raymed.data.labels import LabelTable
from raymed.data.micro_batches import MicroBatch
from raymed.models.settings import ModelSettings
from raymed.recipes.recipe import Batch, TrainingPass
from raymed.recipes.settings import AugmentSettings
from raymed.systems.lung.recipe import LungRecipe
from raymed.training.engine import Engine
from raymed.training.settings import TrainSettings
from raymed.training.state import load_shard

STEPS, SLICES = 8, 8
WARM = 3  # steps that make what later ones find; some waits of DeepSpeed begin after two


def main(device: str = "cuda") -> None:
    """Train a few steps under ZeRO 1 and 2, with a checkpoint.

    Args:
        device: cuda, or cpu to try it.
    """
    computing = open_device(device)
    preset, size = ("internvl-small", 112) if device == "cuda" else ("internvl-tiny", 56)
    recipe = LungRecipe.for_data(
        LabelTable.open("lung"), size, ModelSettings(preset=preset), augment=AugmentSettings("ct", 1.0)
    )
    batch = recipe.encode(phantom_records(size, SLICES), TrainingPass(0, 0))
    lines: list[str] = []
    figures: dict[str, float] = {}
    for stage in (1, 2):
        with process_group_of_one(computing), tempfile.TemporaryDirectory() as folder:
            engine = Engine(recipe, TrainSettings(zero_stage=stage), STEPS, 0, computing)  # type: ignore[arg-type]
            problem = wait_of(engine, batch)
            figures |= {f"{name}_zero{stage}": value for name, value in checkpoint(engine, batch, Path(folder)).items()}
            figures[f"waits_zero{stage}"] = float(bool(problem))
        nothing = "waits for nothing" if device == "cuda" else "was not asked: a CPU waits for none"
        lines.append(f"ZeRO {stage}: a step {problem or nothing}")
    lines += [f"{name}: {value:.4f} s" for name, value in figures.items() if not name.startswith("waits")]
    show("waits", lines, figures, computing)
    sys.exit(any(value for name, value in figures.items() if name.startswith("waits")))


def wait_of(engine: Engine, batch: Batch) -> str:
    """Where a step waits for the card; empty where none does."""
    for number in range(WARM):
        step(engine, batch, number)
    engine.read()
    try:
        with no_waits(engine.device):
            for number in range(WARM, WARM + 3):
                step(engine, batch, number)
    except RuntimeError as error:
        return f"waits: {error}"
    engine.read()
    return ""


def checkpoint(engine: Engine, batch: Batch, folder: Path) -> dict[str, float]:
    """Seconds of a step, of one after a checkpoint was begun, of what held it up, and of the writing beside the steps.

    Raises:
        RuntimeError: what was written is not what the network held.
    """
    usual = [timed(engine, batch, number) for number in range(STEPS)]
    before = {name: value.detach().cpu().clone() for name, value in engine.module.state_dict().items()}
    began = time.perf_counter()
    write = engine.save(folder)
    held_up = time.perf_counter() - began
    after = timed(engine, batch, STEPS)
    began = time.perf_counter()
    write()
    written = time.perf_counter() - began
    (shard,) = (folder / "state").glob("*model_states.pt")
    kept = load_shard(shard)["module"]
    if different := [name for name, value in before.items() if not torch.equal(kept[name], value)]:
        raise RuntimeError(f"the checkpoint's copy is of another step: {', '.join(different[:3])}")
    return {"step": statistics.median(usual), "checkpoint": held_up, "step_after": after, "write": written}


def timed(engine: Engine, batch: Batch, number: int) -> float:
    began = time.perf_counter()
    step(engine, batch, number)
    engine.read()
    return time.perf_counter() - began


def step(engine: Engine, batch: Batch, number: int) -> None:
    engine.step([(engine.prepare(batch), MicroBatch(()))], number)


@contextlib.contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Within it waiting for a card is an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        with patch("torch.cuda.synchronize", side_effect=RuntimeError("torch.cuda.synchronize was called")):
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
