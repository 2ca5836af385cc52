"""Of two machines one holds both workers of a run, once another run has left it. Prints on how many machines they trained.

python tests/training/two_machines.py DATA FOLDER CPUS         # CPUs of each worker
python tests/training/two_machines.py DATA FOLDER CPUS lost    # and the one that holds both is lost; two small ones are left
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from raymed import systems

systems.__path__.append(str(Path(__file__).parents[1] / "rooms"))

from raymed.cluster.connection import connect  # noqa: E402
from raymed.data.prepared import Prepared  # noqa: E402
from raymed.data.record import Record  # noqa: E402
from raymed.data.stream import stage  # noqa: E402
from raymed.recipes.recipe import Batch, TrainingPass  # noqa: E402
from raymed.systems.toy import recipe  # noqa: E402
from raymed.training.fit import fit, resources  # noqa: E402
from raymed.training.settings import TrainSettings  # noqa: E402
from raymed.training.spec import RunSpec  # noqa: E402

cloudpickle.register_pickle_by_value(recipe)  # workers cannot import tests

EPOCHS = 30  # of a run that outlives its machine
OCCUPIED = 4.0  # seconds after which the other run is over


@dataclass(frozen=True)
class Placed(recipe.ToyRecipe):
    """Notes the machines on which it is trained."""

    folder: str = ""

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        if training is not None:
            Path(self.folder, ray.get_runtime_context().get_node_id()).touch()
        return super().encode(records, training)


def main(data: str, folder: Path, cpus: int, is_lost: bool) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    cluster.add_node(num_cpus=cpus)
    large = cluster.add_node(num_cpus=2, resources={"large": 1})
    connect()
    prepared = Prepared.open(data)
    source = stage(prepared, np.arange(prepared.index.num_rows))
    other = placement_group([{"CPU": 1, "large": 1}])
    ray.get(other.ready())
    threading.Timer(OCCUPIED, remove_placement_group, (other,)).start()
    (folder / "machines").mkdir()
    placed = Placed(**vars(recipe.ToyRecipe.for_data(prepared.labels, prepared.size)) | {"folder": str(folder / "machines")})
    if is_lost:
        cluster.add_node(num_cpus=cpus)
        threading.Thread(target=lose, args=(cluster, large, folder / "run"), daemon=True).start()
    train = TrainSettings(epochs=EPOCHS if is_lost else 1, global_batch=8, micro_batch=4, norm_group=4)
    fit(RunSpec("run", str(folder), data, placed, train, workers=2), source, resources(2, cpus))
    print(len(list((folder / "machines").iterdir())))
    ray.shutdown()
    cluster.shutdown()


def lose(cluster: Cluster, machine: Any, run: Path) -> None:
    """Take a machine away once the run on it has a checkpoint."""
    while not list(run.glob("step-*/sealed-000.json")):
        time.sleep(0.1)
    cluster.remove_node(machine)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), "lost" in sys.argv[4:])
