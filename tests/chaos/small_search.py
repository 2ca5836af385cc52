"""A small search by itself, to be killed: trials of three epochs, one at a time, some stopped early.

python tests/chaos/small_search.py FOLDER NAME TRIALS [STORAGE MINUTES]    # over the prepared data in FOLDER/data

It trains slowly for as long as the file FOLDER/hold is there. MINUTES is how long a storage that is away is waited for.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path

import small
from ray import cloudpickle
from small import Held, Small

from raymed.cluster.connection import connect
from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.job.job import ended_at_once
from raymed.job.library_log import OneLine
from raymed.job.witness import witnessed
from raymed.training.engine import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.execution import run_search
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import Halving

cloudpickle.register_pickle_by_value(small)  # workers cannot import tests

TRAIN = TrainSettings(epochs=3, global_batch=8, micro_batch=8, lr=1e-2, checkpoint_steps=3)


def small_search(
    folder: Path,
    name: str,
    trials: int,
    halving: Halving | None = None,
    seed: int = 1,
    storage: Path | str | None = None,
    minutes: float = 20.0,
) -> Search:
    """A search over the prepared data in `folder`/data; its MLflow database lies in `folder` too, and so do its runs."""
    prepared = Prepared.open(f"{folder}/data")
    recipe = Held(**vars(Small.for_data(prepared.labels, prepared.size)), hold=str(folder / "hold"))
    train = dataclasses.replace(TRAIN, storage_minutes=minutes)
    template = RunSpec(name, str(storage or folder), prepared.folder.uri, recipe, train, seed=seed)
    space = {"train.lr": Dimension(1e-6, 1e-2, log=True)}
    settings = SearchSettings(space=space, halving=halving or Halving(1, 3), concurrent=1)
    return Search(template, settings, Budget(trials), f"sqlite:///{folder}/{Path(storage or folder / name).name}.db")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(OneLine("%(message)s"))
    storage, minutes = (sys.argv[4], float(sys.argv[5])) if len(sys.argv) > 4 else (None, 20.0)
    try:
        with witnessed(ended_at_once()):
            connect()
            run_search(small_search(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), storage=storage, minutes=minutes))
    except (UserError, RunError) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
