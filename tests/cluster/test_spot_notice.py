"""What cluster.yaml starts on a spot machine hears that AWS takes it back, and a run leaves it in good order."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import RAY_TOKEN
from forks import starting_quick
from spot_machine import CAN, SETTINGS

from raymed.data.prepared import Prepared


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not CAN, reason="this system lets nobody give a machine processes of its own")
def test_a_run_leaves_a_machine_that_aws_takes_back_with_a_checkpoint_and_the_machine_ends(
    prepared: Prepared, tmp_path: Path
) -> None:
    """Ray knew nothing of AWS's word, and two minutes later the machine was lost with what it had not saved."""
    command = starting_quick(Path(__file__).with_name("spot_notice.py"), prepared.folder.uri, str(tmp_path))
    # without what a test before has set for a Ray of its own, which has no watch over machines that are taken back
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")} | RAY_TOKEN | SETTINGS
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400, env=environment)
    seen = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    console = tmp_path / "console.log"
    assert "saved" in seen, done.stderr[-3000:] + (console.read_text()[-2000:] if console.exists() else "")
    assert not seen["ended without a notice"] and seen["ended"] == "shutdown -h now"
    assert 0 < seen["saved"] < seen["steps"] // 2, "within the first of two epochs, at whose end it would have saved anyway"
    assert seen["machines"] == 2, "it went on on another"
