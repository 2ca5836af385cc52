"""A spot machine: a process namespace with a Ray of its own and what cluster.yaml starts there, and AWS's word to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child"]
CAN = bool(shutil.which("unshare")) and not subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode
PATIENCE = 600.0  # seconds for a change to be seen
SETTINGS = {"RAY_memory_monitor_refresh_ms": "0"}  # of every Ray here: what else takes memory is none of its business
NOTICE = b'{"action": "terminate", "time": "2026-01-02T03:04:05Z"}'


class Metadata(BaseHTTPRequestHandler):
    """AWS's metadata service, which asks for a token that is asked for first (IMDSv2)."""

    notice = False
    asked = 0

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(*((200, b"token") if known else (400, b"")))

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            return self._answer(401)
        type(self).asked += 1
        is_there = self.notice and self.path == "/latest/meta-data/spot/instance-action"
        return self._answer(*((200, NOTICE) if is_there else (404, b"")))

    def _answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Spot:
    """A machine: a file that its end makes, and what AWS answers there."""

    ended: Path
    metadata: type[Metadata]


@contextmanager
def machine(head: str, folder: Path) -> Iterator[Spot]:
    """A machine with a Ray that joins the head, and with what cluster.yaml starts there."""
    commands = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["worker_start_ray_commands"]
    (watch,) = (line for line in commands if "instance-action" in line)
    home, spot = folder / "home", Spot(folder / "home" / "ended", type("Told", (Metadata,), {}))
    metadata = ThreadingHTTPServer(("127.0.0.1", 0), spot.metadata)
    threading.Thread(target=metadata.serve_forever, daemon=True).start()
    (home / "bin").mkdir(parents=True)
    (home / "raymed.env").touch()
    here = f"http://127.0.0.1:{metadata.server_port}"
    for name, line in {
        "curl": f'exec {shutil.which("curl")} "${{@/http:\\/\\/169.254.169.254/{here}}}"',
        "sleep": f"exec {shutil.which('sleep')} ${{1/5/0.2}}",  # AWS is asked more often
        "sudo": "echo $* > ~/ended",
    }.items():
        (home / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (home / "bin" / name).chmod(0o755)
    assert "$RAY_HEAD_IP:6379" in watch
    begins = f"ray start --address={head} --num-cpus=1 && {{ {watch.replace('$RAY_HEAD_IP:6379', head)} }}"
    # its first process takes in what has lost its parent
    first = f"cd; {begins}; while true; do /bin/sleep 1; done"
    path = f"{home}/bin:{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    with (folder / "console.log").open("wb") as console:
        power = subprocess.Popen(
            [*NAMESPACE, "bash", "-c", first],
            env=os.environ | {"HOME": str(home), "PATH": path},
            stdout=console,
            stderr=console,
        )
    try:
        yield spot
    finally:
        power.kill()
        power.wait()
        metadata.shutdown()


def await_(happened: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)
