"""Where the workers of a run lie: on one machine where one holds them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raymed.cluster import connection
from raymed.compat.ray import HEAD_NODE
from raymed.data.prepared import Prepared
from raymed.training.fit import Resources

ONE, TWO, FOUR = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 48.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("machines", "each", "together"),
    [
        ([ONE, ONE], Resources(2, 2, 8, 1.0), False),
        ([ONE, TWO], Resources(2, 2, 8, 1.0), True),
        ([FOUR], Resources(4, 4, 16, 1.0), False),  # it has the cards, and not the CPUs
        ([TWO], Resources(2, 1, 8, 1.0), False),  # an elastic run takes what there is
        ([TWO], Resources(1, 1, 8, 1.0), False),
        ([{"CPU": 4.0}, {"CPU": 4.0}], Resources(2, 2, 2, 0.0), True),
        ([{"CPU": 4.0}, {"CPU": 4.0}], Resources(2, 2, 4, 0.0), False),
        ([{"CPU": 4.0, HEAD_NODE: 1.0}], Resources(2, 2, 2, 0.0), False),  # there are the drivers of jobs and trials
    ],
)
def test_workers_wait_for_one_machine_only_where_one_can_hold_them(
    machines: list[dict[str, float]], each: Resources, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that waits for a machine that no cluster has waits for ever."""
    monkeypatch.setattr(connection, "machines", lambda: machines)
    total = {name: sum(machine.get(name, 0.0) for machine in machines) for name in ("CPU", "GPU")}
    monkeypatch.setattr(connection, "resources", lambda: total)
    monkeypatch.delenv("RAYMED_CAPACITY", raising=False)
    assert each.lie_together is together


@pytest.mark.slow
@pytest.mark.parametrize(("cpus", "machines"), [(1, 1), (2, 2)])
def test_workers_train_on_one_machine_where_one_holds_them_and_on_two_where_none_does(
    cpus: int, machines: int, prepared: Prepared, tmp_path: Path
) -> None:
    """Two machines, joined by an ordinary network, summed gigabytes of gradients in every step."""
    script = Path(__file__).with_name("two_machines.py")
    command = [sys.executable, str(script), prepared.folder.uri, str(tmp_path), str(cpus)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == [str(machines)], done.stderr[-3000:]
