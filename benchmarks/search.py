"""Epochs and time until our search reaches the best val_loss of a random search of the same budget.

    python benchmarks/search.py                 # the figures of docs/log.md: half an hour on one CPU core
    python benchmarks/search.py --seeds 1 --trials 3 --epochs 3 --patients 24 --size 28 --source_size 32     # to try it

Random draws from the same space, trains every trial to its last epoch, and its best is the mark. Ours is the real study
(the default settings first, TPE, successive halving) and stops when it reaches the mark or has used as many epochs. Both
train for real, with raymed's engine, but one after the other in this process: a start of Ray for each trial would take
longer than the trial. Space and settings are those of configs/tune_lung.yaml, with the smallest network.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from jsonargparse import auto_cli
from machine import process_group_of_one, show
from optuna.trial import TrialState

from raymed.data.phantom import PhantomSettings
from raymed.data.plan import SliceSettings
from raymed.data.prepared import Prepared
from raymed.data.record import Record
from raymed.errors import RunError
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import AugmentSettings
from raymed.recipes.lung import LungRecipe
from raymed.recipes.recipe import TrainingPass
from raymed.storage import Folder
from raymed.system import prepare_phantoms
from raymed.training.engine import Engine, TrainSettings
from raymed.training.loop import JUDGED_BY, FitSpec
from raymed.tuning.night import Night, SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import Budget, Halving

CONFIG = Path(__file__).parent.parent / "configs" / "tune_lung.yaml"
CPU = torch.device("cpu")


def main(
    folder: str = "runs/benchmark-search",
    seeds: int = 5,
    trials: int = 16,
    epochs: int = 9,
    patients: int = 192,
    source_size: int = 128,
    size: int = 56,
    slices: int = 6,
    preset: str = "tiny",
) -> None:
    """Search in both ways, once per seed.

    Args:
        folder: Where phantom patients are kept.
        seeds: How many pairs of searches.
        trials: Trials of the random search.
        epochs: Epochs of a trial.
        patients: How many, of 30 to 35 slices.
        source_size: Side of the PNGs, in pixels.
        size: Side of what the model takes.
        slices: Slices of a patient.
        preset: The network.
    """
    storage = Folder.at(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    prepared = prepare_phantoms(storage, PhantomSettings(patients=patients, size=source_size), size)
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    recipe = LungRecipe.for_data(
        prepared.labels, size, ModelSettings(preset=preset), augment=AugmentSettings(**config["augment"])
    )
    train = TrainSettings(**config["train"] | {"epochs": epochs})
    template = FitSpec("search", "", prepared.folder.uri, recipe, train, SliceSettings(per_patient=slices))
    space = {name: Dimension(**each) for name, each in config["search"]["space"].items()}
    search = SearchSettings(space, Halving(**config["search"]["halving"]))

    with process_group_of_one(), tempfile.TemporaryDirectory() as temporary:
        records = Records(prepared, template)
        pairs = []
        for seed in range(seeds):
            at = dataclasses.replace(template, seed=seed, storage=f"{temporary}/{seed}")
            pairs.append(compare(Night(at, search, Budget(10**6, trials * epochs), ""), trials, records))
            print(f"seed {seed}: {pairs[-1]}", file=sys.stderr)
    budget = trials * epochs
    shares = [pair.epochs / budget for pair in pairs]
    times = [pair.seconds / pair.random_seconds for pair in pairs]
    figures = {
        "pairs": [dataclasses.asdict(pair) for pair in pairs],
        "share_of_epochs": statistics.median(shares),
        "share_of_time": statistics.median(times),
        "reached": sum(pair.reached for pair in pairs),
    }
    lines = [
        f"seed {seed}: random's best val_loss {pair.mark:.4f} in {budget} epochs, {pair.random_seconds:.0f} s; ours "
        + (f"reached it with trial {pair.trial} after" if pair.reached else f"did not reach it ({pair.best:.4f}) in")
        + f" {pair.epochs} epochs, {pair.seconds:.0f} s"
        for seed, pair in enumerate(pairs)
    ]
    lines += [
        f"share of random's {what}: median {statistics.median(each):.2f}, from {min(each):.2f} to {max(each):.2f}"
        for what, each in (("epochs", shares), ("time", times))
    ]
    show(f"search, {seeds} seeds, {trials} trials of {epochs} epochs, {preset} at {size} pixels", lines, figures)


@dataclass(frozen=True)
class Pair:
    """A random search and ours.

    Attributes:
        mark: random's lowest val_loss.
        random_seconds: what all its trials took.
        reached: whether ours came to the mark.
        best: ours' lowest val_loss.
        trial: the trial that has it; 0 is the default settings.
        epochs: over all of ours' trials.
        seconds: what those took, asking and recording included.
    """

    mark: float
    random_seconds: float
    reached: bool
    best: float
    trial: int
    epochs: int
    seconds: float


def compare(night: Night, trials: int, records: Records) -> Pair:
    """Both searches from one seed."""
    started = time.process_time()  # one thread: what the wall would show on an idle machine
    mark = min(min(random_trial(night, number, records), default=float("inf")) for number in range(trials))
    between = time.process_time()
    best, trial, epochs = ours(night, mark, records)
    return Pair(mark, between - started, best <= mark, best, trial, epochs, time.process_time() - between)


def random_trial(night: Night, number: int, records: Records) -> Iterator[float]:
    """val_loss of each epoch of settings drawn evenly from the space."""
    distributions = {name: dimension.distribution() for name, dimension in night.search.space.items()}
    sampler = optuna.samplers.RandomSampler(seed=night.template.seed * 1000 + number)
    params = optuna.create_study(sampler=sampler).ask(distributions).params
    return (result["val_loss"] for result in trained(night.trial(number, params), records))


def ours(night: Night, mark: float, records: Records) -> tuple[float, int, int]:
    """Lowest val_loss, the trial that has it, and epochs, when the mark is reached or the budget used up."""
    study, best, best_trial = night.open_study(), float("inf"), 0
    while asked := study.ask(night.budget):
        number, params = asked
        state, lowest, best_epoch = TrialState.COMPLETE, float("inf"), 0
        for result in trained(night.trial(number, params), records):
            if result["val_loss"] < lowest:
                lowest, best_epoch = result["val_loss"], int(result["epoch"])
            stop = study.report(number, int(result["epoch"]), result | {"best_val_loss": lowest, "best_epoch": best_epoch})
            if lowest < best:
                best, best_trial = lowest, number
            if best <= mark:
                return best, best_trial, study.epochs
            if stop or study.epochs >= night.budget.epochs:
                state = TrialState.PRUNED
                break
        study.tell(number, state)
    return best, best_trial, study.epochs


class Records:
    """Every row that a trial reads, decoded and in memory."""

    def __init__(self, prepared: Prepared, spec: FitSpec) -> None:
        rows = spec.all_rows(prepared)
        self.prepared, self.of = prepared, dict(zip(rows.tolist(), prepared.read(rows), strict=True))

    def __getitem__(self, rows: list[int]) -> list[Record]:
        return [self.of[row] for row in rows]


def trained(spec: FitSpec, records: Records) -> Iterator[dict[str, Any]]:
    """Train a trial; after each epoch its number and val_loss. As raymed/training/loop.py, without Ray and checkpoints."""
    prepared = records.prepared
    plans = [spec.plan(prepared, epoch).batches for epoch in range(spec.train.epochs)]
    engine, step = Engine(spec.recipe, spec.train, sum(map(len, plans)), spec.seed, CPU), 0
    rows = spec.rows(prepared, "val")
    batches = [spec.recipe.encode(records[part.tolist()], None) for part in np.array_split(rows, -(-len(rows) // 64))]
    for epoch, plan in enumerate(plans):
        for packs in plan:
            batch = spec.recipe.encode(records[[row for pack in packs for row in pack]], TrainingPass(spec.seed, epoch))
            try:
                engine.step([(batch, True)], step)
            except RunError:  # these settings diverge: the trial is over
                return
            step += 1
        with engine.evaluating():
            logits = np.concatenate([engine.predict(batch)["logits"] for batch in batches])
        yield {"epoch": epoch + 1, **spec.recipe.judge({"logits": logits}, prepared.columns(rows, JUDGED_BY))}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
