"""Where the workers of a run lie: on one machine where one holds them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from forks import run
from ray import cloudpickle

from raymed.cluster import connection
from raymed.compat.ray import HEAD_NODE
from raymed.data.prepared import Prepared
from raymed.training.fit import Resources
from raymed.training.placement import Placement

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
@pytest.mark.parametrize(("words", "machines"), [(["1"], 1), (["2"], 2), (["1", "lost"], 3)])
def test_workers_train_on_one_machine_where_one_holds_them_and_on_two_where_none_does_or_it_was_lost(
    words: list[str], machines: int, prepared: Prepared, tmp_path: Path
) -> None:
    """Two machines, joined by an ordinary network, summed gigabytes of gradients in every step."""
    script = Path(__file__).with_name("two_machines.py")
    done = run([str(script), prepared.folder.uri, str(tmp_path), *words], tmp_path)
    assert done.stdout.splitlines()[-1:] == [str(machines)], done.stderr[-3000:]


def test_workers_wait_no_more_for_a_machine_that_was_lost_beside_the_free_cards_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's controller asks before each start of a run's workers."""
    machines, told = [TWO, ONE, ONE], Told()
    monkeypatch.setattr(connection, "machines", lambda: machines)
    monkeypatch.delenv("RAYMED_CAPACITY", raising=False)
    placement = cloudpickle.loads(cloudpickle.dumps(Placement.of(Resources(2, 2, 8, 1.0), "trial-0007", None)))
    placement._stop_decisions = told
    assert (placement.placement_strategy, told.lines) == ("STRICT_PACK", [])
    machines.remove(TWO)
    assert (placement.placement_strategy, len(told.lines)) == ("PACK", 1) and "workers of trial-0007" in told.lines[0]
    assert (placement.placement_strategy, len(told.lines)) == ("PACK", 1), "it is said once"
    machines.append(TWO)
    assert placement.placement_strategy == "STRICT_PACK"
    machines[:] = [{"CPU": 8.0, HEAD_NODE: 1.0}]  # none with a card is left, and another one is to come
    monkeypatch.setenv("RAYMED_CAPACITY", "CPU=104,GPU=8,MACHINES=4")
    assert placement.placement_strategy == "STRICT_PACK"


class Told:
    """Hears what a person at the job is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tell = self

    def remote(self, text: str) -> None:
        self.lines.append(text)
