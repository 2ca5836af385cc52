"""A small search of jobs/tune_lung.py whose trials share the card as `search.gpus_per_worker auto` finds out; all end well.

    python tests/gpu/run.py --parts search

A CPU is not shared out by this: there the search takes what it takes without.
"""

from __future__ import annotations

import sys
import time
from dataclasses import fields

import ray
from jsonargparse import auto_cli
from machine import open_device, show
from optuna.trial import TrialState
from small_lung import open_data, small_lung
from tune_lung import TuneLung

from raymed.systems.options import for_search
from raymed.tuning import card_share, room
from raymed.tuning.execution import run_search
from raymed.tuning.settings import Halving, SearchSettings
from raymed.tuning.space import Dimension

TRIALS = 4


def main(device: str = "cuda") -> None:
    """Search.

    Args:
        device: cuda, or cpu to try it.
    """
    small = small_lung(device, "search", epochs=1)
    shared = {each.name: getattr(small, each.name) for each in fields(small) if each.init}
    space = {"train.lr": Dimension(low=1e-4, high=1e-2, log=True)}
    settings = SearchSettings(space=space, halving=Halving(first_rung=0), gpus_per_worker="auto")
    options = for_search(TuneLung(**shared | {"search": settings}, trials=TRIALS, max_epochs=1))
    prepared = open_data(small)
    search = options.open_search(prepared, options.budget)
    started = time.monotonic()
    study = run_search(search)
    seconds = time.monotonic() - started
    each, at_once = room.trial_resources(search)
    found = card_share.line(search)
    ray.shutdown()

    ends = [trial.state for trial in study.trials]
    wrong = [f"trials ended as {', '.join(state.name for state in ends)}"] if ends != [TrialState.COMPLETE] * TRIALS else []
    wrong += ["no trial shared the card"] if device == "cuda" and each.gpus == 1 else []
    lines = [
        f"{len(ends)} trials in {seconds:.0f} s, {at_once} at once, each {each.cpus} CPU + {each.gpus:g} GPU",
        *([found] if found else []),
        *(f"NOT AS IT MUST BE: {each}" for each in wrong),
    ]
    figures = {"seconds": seconds, "at_once": at_once, "gpus": each.gpus, "values": [trial.value for trial in study.trials]}
    show("a search on one card", lines, figures, open_device(device))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
