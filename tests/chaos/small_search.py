"""A small search by itself, to be killed: trials of three epochs, one at a time, some stopped early.

python tests/chaos/small_search.py FOLDER NAME TRIALS    # over the prepared data in FOLDER/data
"""

from __future__ import annotations

import sys
from pathlib import Path

import small
from ray import cloudpickle
from small import Small

from raymed.cluster import connect
from raymed.data.prepared import Prepared
from raymed.training.engine import TrainSettings
from raymed.training.loop import FitSpec
from raymed.tuning.budget import Budget
from raymed.tuning.night import Night, SearchSettings
from raymed.tuning.search import run_search
from raymed.tuning.space import Dimension
from raymed.tuning.study import Halving

cloudpickle.register_pickle_by_value(small)  # workers cannot import tests

TRAIN = TrainSettings(epochs=3, global_batch=8, micro_batch=8, lr=1e-2, checkpoint_steps=3)


def search(folder: Path, name: str, trials: int, halving: Halving | None = None, seed: int = 1) -> Night:
    """A search over the prepared data in `folder`/data; its runs and its MLflow database lie in `folder` too."""
    prepared = Prepared.open(f"{folder}/data")
    recipe = Small.for_data(prepared.labels, prepared.size)
    template = FitSpec(name, str(folder), prepared.folder.uri, recipe, TRAIN, seed=seed)
    space = {"train.lr": Dimension(1e-6, 1e-2, log=True)}
    settings = SearchSettings(space=space, halving=halving or Halving(1, 3), concurrent=1)
    return Night(template, settings, Budget(trials), f"sqlite:///{folder}/{name}.db")


if __name__ == "__main__":
    connect()
    run_search(search(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
