"""Of two machines one is lost with staged blocks, while workers hold every CPU left. Prints how many rows come back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group

from raymed.cluster.connection import connect
from raymed.data.prepared import Prepared
from raymed.data.stream import stage


def main(data: Path) -> None:
    os.environ.update(RAY_max_direct_call_object_size="0")  # so small a block would travel with its reference
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    machines = {node.node_id: node for node in (cluster.add_node(num_cpus=1) for _ in range(2))}
    connect()
    prepared = Prepared.open(str(data))
    for _ in range(10):  # Ray spreads blocks over all machines; what lies on the head is not lost
        staged = stage(prepared, np.arange(prepared.index.num_rows))
        places = {
            name for each in ray.experimental.get_object_locations(staged.blocks).values() for name in each["node_ids"]
        }
        if lost := places & machines.keys():
            break
    held = [placement_group([{"CPU": 1}]) for _ in machines]
    ray.get([each.ready() for each in held], timeout=60)
    cluster.remove_node(machines[lost.pop()], allow_graceful=False)
    print(sum(ray.get(block, timeout=300).num_rows for block in staged.blocks))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
