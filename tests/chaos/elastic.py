"""An elastic run (`--workers 1:2`) on two machines, of which one is taken away with notice, given back, and lost without.

python tests/chaos/elastic.py FOLDER    # over the prepared data in FOLDER/data; prints what was seen
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
import small
from ray import cloudpickle
from ray.cluster_utils import Cluster
from small import Held

from raymed.cluster.connection import connect
from raymed.data.prepared import Prepared
from raymed.data.stream import stage
from raymed.training.checkpoint import Progress, newest_step
from raymed.training.engine import TrainSettings
from raymed.training.fit import fit, resources
from raymed.training.spec import RunSpec

cloudpickle.register_pickle_by_value(small)  # workers cannot import tests

PATIENCE = 180.0  # seconds for a change to be seen; Ray looks once a minute whether a run can grow
NOTICE = 60  # seconds between a spot notice and the end of the machine


def main(folder: Path) -> None:
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)  # hooks need the main thread
    try:
        _run(folder, cluster)
        ray.shutdown()
    finally:
        cluster.shutdown()


def _run(folder: Path, cluster: Cluster) -> None:
    os.environ["RAY_ADDRESS"] = cluster.address
    other = cluster.add_node(num_cpus=1)
    connect()
    prepared = Prepared.open(f"{folder}/data")
    settings = TrainSettings(epochs=20, global_batch=16, micro_batch=5, norm_group=5, lr=3e-3, checkpoint_steps=1)
    recipe = Held(**vars(Held.for_data(prepared.labels, prepared.size)) | {"hold": str(folder / "hold")})
    whole = RunSpec("whole", str(folder), prepared.folder.uri, recipe, settings, workers=2)
    elastic = dataclasses.replace(whole, name="elastic", min_workers=1)
    expected = _history(prepared, whole)

    (folder / "hold").touch()
    seen, failed = list[str](), list[BaseException]()

    def happen() -> None:
        try:
            machine = other
            _await(elastic, 2, "the start")
            before = newest_step(elastic.folder)
            _drain(cluster, machine.node_id)
            at = _await(elastic, 1, "a spot notice")
            seen.append(f"notice at step {before}, on one machine from step {at}")
            cluster.remove_node(machine, allow_graceful=False)
            machine = cluster.add_node(num_cpus=1)
            started = time.monotonic()
            at = _await(elastic, 2, "a machine that came")
            seen.append(f"on two again {time.monotonic() - started:.0f} s after one came, from step {at}")
            cluster.remove_node(machine, allow_graceful=False)
            at = _await(elastic, 1, "a lost machine")
            seen.append(f"lost without notice, on one from step {at}")
        except BaseException as error:
            failed.append(error)
        finally:
            (folder / "hold").unlink()

    thread = threading.Thread(target=happen)
    thread.start()
    found = _history(prepared, elastic)
    thread.join()
    if failed:
        raise failed[0]
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    assert worst <= 1e-4, f"losses differ by {worst:.1e}"
    print(f"{'; '.join(seen)}; largest difference of an epoch's losses {worst:.1e}")


def _history(prepared: Prepared, spec: RunSpec) -> list[float]:
    """Losses of all epochs of a run that is trained to its end."""
    fit(spec, stage(prepared, spec.all_rows(prepared)), resources(spec.workers, 1, spec.min_workers))
    history = _newest(spec).history
    return [epoch[name] for epoch in history for name in ("train_loss", "val_loss")]


def _newest(spec: RunSpec) -> Progress:
    sealed = [path.parent for path in Path(spec.folder.path).glob("step-*/sealed-000.json")]
    return Progress.read(max(sealed, key=lambda path: path.name[:13])) if sealed else Progress(workers=0)


def _await(spec: RunSpec, workers: int, after: str) -> int:
    """The step of the first checkpoint that so many workers wrote."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            newest = _newest(spec)
        except (OSError, ValueError):  # under way, or Ray Train removed it for a later one
            continue
        if newest.workers == workers:
            return newest.global_step
        assert time.monotonic() < end, f"{PATIENCE:.0f} s after {after} the run still has {newest.workers} workers"
        time.sleep(0.2)


def _drain(cluster: Cluster, node: str) -> None:
    """What a cloud's spot notice becomes in Ray."""
    command = [Path(sys.executable).parent / "ray", "drain-node", "--address", cluster.address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    subprocess.run([*map(str, command), str(NOTICE)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
