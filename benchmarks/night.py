"""The report writer's night: the guide's grid, each of its points trained to its end, against our search of the same budget.

    python benchmarks/night.py                        # the figures of docs/log.md: minutes on a CPU core
    python benchmarks/night.py --data PREPARED --seeds 1 --epochs 2

Stage 1 on phantom patients, with the settings of jobs/overnight.py: learning rates 1e-4 and 5e-5, batches of 2 and 4. The
best val_loss of the grid is the mark; our search, the real study (the grid's points first, TPE, successive halving), stops
when it reaches the mark or has used as many epochs. All train for real, one after the other in this process.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile

import optuna
import torch
from in_process import Records, trained
from jsonargparse import auto_cli
from machine import process_group_of_one, show
from search import our_search

from raymed.data.prepared import Prepared
from raymed.job.job import parse
from raymed.systems.mamba_vlm.overnight_options import GRID, GUIDE, OvernightOptions
from raymed.tuning.budget import Budget
from raymed.tuning.search import Search


def main(
    data: str | None = None, seeds: int = 5, first_seed: int = 0, epochs: int = 9, storage: str = "runs/benchmark-night"
) -> None:
    """Search in both ways, once per seed.

    Args:
        data: Prepared reports; without it, those about phantom patients (their preparation starts Ray).
        seeds: How many times, each from another seed.
        first_seed: The first of these seeds.
        epochs: Of a trial.
        storage: Where phantom patients are kept.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    words = ["--epochs", str(epochs), "--storage", storage]
    options = parse(OvernightOptions, words, aliases=GUIDE, script=sys.modules[OvernightOptions.__module__]).completed()
    prepared = Prepared.open(data) if data else options.prepared()
    template = options.spec(prepared)
    budget = len(GRID) * epochs
    marks, found = [], []
    with process_group_of_one(), tempfile.TemporaryDirectory() as temporary:
        records = Records(prepared, template)
        for seed in range(first_seed, first_seed + seeds):
            at = dataclasses.replace(template, name="night", seed=seed, storage=f"{temporary}/{seed}")
            search = Search(at, options.search, Budget(10**6, budget), "")
            runs = (search.run_spec(number, point) for number, point in enumerate(GRID))
            marks.append(min(result["val_loss"] for run in runs for result, _ in trained(run, records)))
            found.append(our_search(search, "ours", search.first, marks[-1], records))
            print(f"seed {seed}: {marks[-1]:.4f}, ours {found[-1]}", file=sys.stderr, flush=True)
    shares = [each.epochs / budget for each in found]
    lines = [
        *(
            f"seed {first_seed + place}: the grid's best val_loss {mark:.4f} in {budget} epochs; ours {one}"
            for place, (mark, one) in enumerate(zip(marks, found, strict=True))
        ),
        f"reached in {sum(each.reached for each in found)} of {seeds}; share of the epochs: median "
        f"{statistics.median(shares):.2f}, from {min(shares):.2f} to {max(shares):.2f}",
    ]
    figures = {"marks": marks, "searches": [dataclasses.asdict(each) for each in found], "shares": shares}
    show(f"the guide's grid and our search, {seeds} seeds, {epochs} epochs a trial", lines, figures)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
