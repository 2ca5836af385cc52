"""Stop decisions are told again once their actor was lost, and nobody is told when Ray itself has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import starting_quick

SCRIPT = """
import logging, time
import ray
from raymed.cluster.connection import HEAD, connect
from raymed.training.stop_decisions import StopDecisions
from raymed.tuning.reminder import Reminder

logging.basicConfig(level=logging.WARNING, format="%(message)s")
connect()
actor = StopDecisions.options(resources=HEAD).remote()
with Reminder(actor, lambda: [("run", 1, True)]):
    ray.get(actor.give.remote("run", 2, False))
    ray.kill(actor, no_restart=False)
    print("told:", ray.get(actor.ask.remote("run", 1), timeout=60), flush=True)
    ray.shutdown()
    time.sleep(2)
"""


@pytest.mark.slow
def test_decisions_are_told_again_and_the_end_of_ray_is_no_traceback(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    (tmp_path / "remind.py").write_text(SCRIPT)
    command = starting_quick(tmp_path / "remind.py")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert "told: True\n" in done.stdout, done.stderr
    assert "was lost: it is started again" in done.stderr
    assert "Traceback" not in done.stderr
