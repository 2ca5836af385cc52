"""AWS takes a machine back on which a run trains; another comes. Prints what was seen, as JSON.

python tests/cluster/spot_notice.py DATA FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from spot_machine import REPOSITORY, await_, machine

from raymed import systems

systems.__path__.append(str(REPOSITORY / "tests" / "rooms"))

from raymed.cluster.connection import connect  # noqa: E402
from raymed.compat.ray_train import is_drained  # noqa: E402
from raymed.data.prepared import Prepared  # noqa: E402
from raymed.data.record import Record  # noqa: E402
from raymed.data.stream import stage  # noqa: E402
from raymed.recipes.recipe import Batch, TrainingPass  # noqa: E402
from raymed.systems.toy import recipe  # noqa: E402
from raymed.training.checkpoint import Progress  # noqa: E402
from raymed.training.fit import fit, resources  # noqa: E402
from raymed.training.settings import TrainSettings  # noqa: E402
from raymed.training.spec import RunSpec  # noqa: E402

cloudpickle.register_pickle_by_value(recipe)  # workers cannot import tests


@dataclass(frozen=True)
class Slow(recipe.ToyRecipe):
    """Waits until Ray has told of AWS's word, as long as the folder's ``hold`` is there, and notes where it is trained."""

    folder: str = ""

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        if training is not None:
            Path(self.folder, "trained", ray.get_runtime_context().get_node_id()).touch()
            while Path(self.folder, "hold").exists():
                if is_drained():
                    break
                time.sleep(0.1)
        return super().encode(records, training)


def main(data: str, folder: Path) -> None:
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)  # hooks need the main thread
    os.environ["RAY_ADDRESS"] = cluster.address
    (folder / "trained").mkdir()
    (folder / "hold").touch()
    with machine(cluster.address, folder) as spot:
        connect()
        await_(lambda: ray.cluster_resources().get("CPU"), "the machine")
        prepared = Prepared.open(data)
        slow = Slow(**vars(recipe.ToyRecipe.for_data(prepared.labels, prepared.size)) | {"folder": str(folder)})
        train = TrainSettings(epochs=2, global_batch=8, micro_batch=4, norm_group=4)
        spec, seen = RunSpec("run", str(folder), data, slow, train), dict[str, object]()
        run = Path(spec.folder.path)

        def happen() -> None:
            await_(lambda: list((folder / "trained").iterdir()), "the first step")
            asked = spot.metadata.asked
            await_(lambda: spot.metadata.asked > asked, "a look at what AWS says")
            seen["ended without a notice"] = spot.ended.exists()
            spot.metadata.notice = True
            await_(spot.ended.exists, "the machine's end")
            seen["ended"] = spot.ended.read_text().strip()
            await_(lambda: list(run.glob("step-*/sealed-000.json")), "a checkpoint")  # a busy machine ends before it
            (saved,) = (path.parent for path in run.glob("step-*/sealed-000.json"))
            seen["saved"] = Progress.read(saved).global_step
            (folder / "hold").unlink()
            cluster.add_node(num_cpus=1)

        def happen_or_end() -> None:
            try:
                happen()
            except BaseException:
                for node in (*cluster.worker_nodes, cluster.head_node):
                    node.kill_all_processes(check_alive=False, allow_graceful=False)
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)  # the run would wait for the other machine for ever

        thread = threading.Thread(target=happen_or_end)
        thread.start()
        fit(spec, stage(prepared, np.arange(prepared.index.num_rows)), resources(1, 1))
        thread.join()
        steps = max(Progress.read(path.parent).global_step for path in run.glob("step-*/sealed-000.json"))
    print(json.dumps(seen | {"steps": steps, "machines": len(list((folder / "trained").iterdir()))}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
