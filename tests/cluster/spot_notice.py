"""AWS takes a machine back on which a run trains; another comes. Prints what was seen, as JSON.

python tests/cluster/spot_notice.py DATA FOLDER

The machine is a process namespace with a Ray of its own and what cluster.yaml starts there; a server here answers what AWS's
metadata service does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import ray
import yaml
from ray import cloudpickle
from ray.cluster_utils import Cluster

from raymed import systems

REPOSITORY = Path(__file__).parents[2]
systems.__path__.append(str(REPOSITORY / "tests" / "rooms"))

from raymed.cluster.connection import connect  # noqa: E402
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

NAMESPACE = ["unshare", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child"]
PATIENCE = 600.0  # seconds for a change to be seen
# what AWS's metadata service answers, once AWS has decided
NOTICE = b'{"action": "terminate", "time": "2026-01-02T03:04:05Z"}'


@dataclass(frozen=True)
class Slow(recipe.ToyRecipe):
    """Trains slowly while the folder's ``hold`` is there, and notes the machines on which it is trained."""

    folder: str = ""

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        if training is not None:
            Path(self.folder, "trained", ray.get_runtime_context().get_node_id()).touch()
            if Path(self.folder, "hold").exists():
                time.sleep(6)
        return super().encode(records, training)


class Metadata(BaseHTTPRequestHandler):
    """AWS's metadata service, which asks for a token that is asked for first (IMDSv2)."""

    notice = False
    asked = 0

    def do_PUT(self) -> None:  # noqa: N802
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(*((200, b"token") if known else (400, b"")))

    def do_GET(self) -> None:  # noqa: N802
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            return self._answer(401)
        Metadata.asked += 1
        is_there = Metadata.notice and self.path == "/latest/meta-data/spot/instance-action"
        return self._answer(*((200, NOTICE) if is_there else (404, b"")))

    def _answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main(data: str, folder: Path) -> None:
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)  # hooks need the main thread
    os.environ["RAY_ADDRESS"] = cluster.address
    (folder / "trained").mkdir()
    (folder / "hold").touch()
    with machine(cluster.address, folder) as ended:
        connect()
        await_(lambda: ray.cluster_resources().get("CPU"), "the machine")
        prepared = Prepared.open(data)
        slow = Slow(**vars(recipe.ToyRecipe.for_data(prepared.labels, prepared.size)) | {"folder": str(folder)})
        train = TrainSettings(epochs=2, global_batch=8, micro_batch=4, norm_group=4)
        spec, seen = RunSpec("run", str(folder), data, slow, train), dict[str, object]()

        def happen() -> None:
            await_(lambda: list((folder / "trained").iterdir()), "the first step")
            asked = Metadata.asked
            await_(lambda: Metadata.asked > asked, "a look at what AWS says")
            seen["ended without a notice"] = ended.exists()
            Metadata.notice = True
            await_(ended.exists, "the machine's end")
            seen["ended"] = ended.read_text().strip()
            (saved,) = (path.parent for path in spec_folder.glob("step-*/sealed-000.json"))
            seen["saved"] = Progress.read(saved).global_step
            (folder / "hold").unlink()
            cluster.add_node(num_cpus=1)

        spec_folder = Path(spec.folder.path)
        def happen_or_end() -> None:
            try:
                happen()
            except BaseException:
                traceback.print_exc()
                os._exit(1)  # the run would wait for the other machine for ever

        thread = threading.Thread(target=happen_or_end)
        thread.start()
        fit(spec, stage(prepared, np.arange(prepared.index.num_rows)), resources(1, 1))
        thread.join()
        steps = max(Progress.read(path.parent).global_step for path in spec_folder.glob("step-*/sealed-000.json"))
    print(json.dumps(seen | {"steps": steps, "machines": len(list((folder / "trained").iterdir()))}))
    ray.shutdown()
    cluster.shutdown()


@contextmanager
def machine(head: str, folder: Path) -> Iterator[Path]:
    """A machine with a Ray that joins the head's, and with what cluster.yaml starts there. Gives a file that its end makes."""
    commands = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["worker_start_ray_commands"]
    (watch,) = (line for line in commands if "instance-action" in line)
    home, metadata = folder / "home", ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    (home / "bin").mkdir(parents=True)
    (home / "raymed.env").touch()
    here = f"http://127.0.0.1:{metadata.server_port}"
    for name, line in {
        "curl": f'exec {shutil.which("curl")} "${{@/http:\\/\\/169.254.169.254/{here}}}"',
        "sleep": f"exec {shutil.which('sleep')} 0.2",
        "sudo": "echo $* > ~/ended",
    }.items():
        (home / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (home / "bin" / name).chmod(0o755)
    assert "$RAY_HEAD_IP:6379" in watch
    begins = f"ray start --address={head} --num-cpus=1 && {{ {watch.replace('$RAY_HEAD_IP:6379', head)} }}"
    # its first process takes in what has lost its parent
    first = f"cd; {begins}; while true; do /bin/sleep 1; done"
    path = f"{home}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    power = subprocess.Popen([*NAMESPACE, "bash", "-c", first], env=os.environ | {"HOME": str(home), "PATH": path})
    try:
        yield home / "ended"
    finally:
        power.kill()
        power.wait()
        metadata.shutdown()


def await_(happened: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
