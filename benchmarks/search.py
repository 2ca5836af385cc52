"""Epochs and time until our search reaches the best val_loss of a random search of the same budget.

    python benchmarks/search.py                 # the figures of docs/log.md: an hour on one CPU core
    python benchmarks/search.py --seeds 1 --trials 3 --epochs 3 --patients 24 --size 28 --source_size 32     # to try it

Random draws from the same space, trains every trial to its last epoch, and its best is the mark. Ours is the real study
(the default settings first, TPE, successive halving) and stops when it reaches the mark or has used as many epochs. It runs
a second time without the default settings, to tell what the search does from what good defaults do. All train for real,
with raymed's engine, but one after the other in this process: a start of Ray for each trial would take longer than the
trial. Space and settings are those of configs/tune_lung.yaml, with the smallest network.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from in_process import Records, trained
from jsonargparse import auto_cli
from machine import process_group_of_one, show
from optuna.trial import TrialState

from raymed.data.phantom import PhantomSettings
from raymed.data.plan import SliceSettings
from raymed.models.settings import ModelSettings
from raymed.recipes.augment import AugmentSettings
from raymed.storage.folder import Folder
from raymed.systems.lung.recipe import LungRecipe
from raymed.systems.options import prepare_phantoms
from raymed.training.engine import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.draw import distribution
from raymed.tuning.journal import Journal
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension, Value
from raymed.tuning.study import Halving, Study

CONFIG = Path(__file__).parent.parent / "configs" / "tune_lung.yaml"
CPU = torch.device("cpu")
WAYS = ("ours", "ours without the defaults")


def main(
    folder: str = "runs/benchmark-search",
    seeds: int = 5,
    first_seed: int = 0,
    trials: int = 16,
    epochs: int = 9,
    patients: int = 192,
    source_size: int = 128,
    size: int = 56,
    slices: int = 6,
    preset: str = "tiny",
) -> None:
    """Search in each way, once per seed.

    Args:
        folder: Where phantom patients are kept.
        seeds: How many times, each from another seed.
        first_seed: The first of these seeds.
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
    template = RunSpec("search", "", prepared.folder.uri, recipe, train, SliceSettings(per_patient=slices))
    space = {name: Dimension(**each) for name, each in config["search"]["space"].items()}
    settings = SearchSettings(space, halving=Halving(**config["search"]["halving"]))

    with process_group_of_one(), tempfile.TemporaryDirectory() as temporary:
        records = Records(prepared, template)
        marks, found = [], []
        for seed in range(first_seed, first_seed + seeds):
            at = dataclasses.replace(template, seed=seed, storage=f"{temporary}/{seed}")
            search = Search(at, settings, Budget(10**6, trials * epochs), "")
            marks.append(random_search(search, trials, records))
            firsts = dict(zip(WAYS, ([search.defaults], []), strict=True))
            found.append({way: our_search(search, way, first, marks[-1].val_loss, records) for way, first in firsts.items()})
            print(f"seed {seed}: {marks[-1]} {found[-1]}", file=sys.stderr)
    budget = trials * epochs
    lines = [
        f"seed {first_seed + place}: random's best val_loss {mark.val_loss:.4f} in {budget} epochs, {mark.seconds:.0f} s"
        + "".join(f"; {way}: {one[way]}" for way in WAYS)
        for place, (mark, one) in enumerate(zip(marks, found, strict=True))
    ]
    figures: dict[str, Any] = {"marks": [dataclasses.asdict(mark) for mark in marks]}
    for way in WAYS:
        ours = [one[way] for one in found]
        shares = [each.epochs / budget for each in ours]
        times = [each.seconds / mark.seconds for each, mark in zip(ours, marks, strict=True)]
        figures[way] = {
            "searches": [dataclasses.asdict(each) for each in ours],
            "share_of_epochs": statistics.median(shares),
            "share_of_time": statistics.median(times),
            "reached": sum(each.reached for each in ours),
        }
        lines += [
            f"{way}: share of random's {what}: median {statistics.median(each):.2f}, from {min(each):.2f} to {max(each):.2f}"
            for what, each in (("epochs", shares), ("time", times))
        ]
    show(f"search, {seeds} seeds, {trials} trials of {epochs} epochs, {preset} at {size} pixels", lines, figures)


@dataclass(frozen=True)
class Mark:
    """What a random search reached.

    Attributes:
        val_loss: the lowest.
        seconds: what all its trials took.
    """

    val_loss: float
    seconds: float


@dataclass(frozen=True)
class Found:
    """What our search reached.

    Attributes:
        reached: whether it came to the mark.
        val_loss: the lowest.
        trial: the trial that has it.
        epochs: over all of its trials.
        seconds: what those took, asking and recording included.
    """

    reached: bool
    val_loss: float
    trial: int
    epochs: int
    seconds: float

    def __str__(self) -> str:
        how = f"by trial {self.trial}" if self.reached else f"not reached ({self.val_loss:.4f})"
        return f"{how} in {self.epochs} epochs, {self.seconds:.0f} s"


def random_search(search: Search, trials: int, records: Records) -> Mark:
    """Train settings drawn at random, each to its end."""
    started = time.process_time()  # one thread: what the wall would show on an idle machine
    lowest = min(min(random_trial(search, number, records), default=float("inf")) for number in range(trials))
    return Mark(lowest, time.process_time() - started)


def random_trial(search: Search, number: int, records: Records) -> Iterator[float]:
    """val_loss of each epoch of settings drawn evenly from the space."""
    distributions = {name: distribution(dimension) for name, dimension in search.settings.space.items()}
    sampler = optuna.samplers.RandomSampler(seed=search.template.seed * 1000 + number)
    params = optuna.create_study(sampler=sampler).ask(distributions).params
    return (result["val_loss"] for result, _ in trained(search.run_spec(number, params), records))


def our_search(search: Search, way: str, first: Sequence[Mapping[str, Value]], mark: float, records: Records) -> Found:
    """Search until the mark is reached or the budget used up.

    Args:
        first: settings of the first trials.
        mark: a val_loss.
    """
    started = time.process_time()
    folder = search.template.folder.child(way)
    journal = Journal(Path(folder.path) / "study.journal", folder)
    study = Study(journal, way, search.settings.space, [*first], search.settings.halving, search.template.seed)
    best, best_trial = float("inf"), 0
    while best > mark and (asked := study.ask(search.budget)):
        number, params = asked
        state, lowest, best_epoch = TrialState.COMPLETE, float("inf"), 0
        for result, _ in trained(search.run_spec(number, params), records):
            if result["val_loss"] < lowest:
                lowest, best_epoch = result["val_loss"], int(result["epoch"])
            stop = study.report(number, int(result["epoch"]), result | {"best_val_loss": lowest, "best_epoch": best_epoch})
            if lowest < best:
                best, best_trial = lowest, number
            if stop or best <= mark or study.trained >= search.budget.epochs:
                state = TrialState.PRUNED
                break
        study.tell(number, state)
    study.close()
    return Found(best <= mark, best, best_trial, study.trained, time.process_time() - started)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
