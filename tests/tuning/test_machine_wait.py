"""A search that waits for machines says so, and ends in time without them."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilityRecord,
    NodeAvailabilitySummary,
    UnavailableNodeInformation,
)

from raymed import clock
from raymed.cluster import autoscaler
from raymed.data.prepared import Prepared
from raymed.errors import RunError
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.engine import TrainSettings
from raymed.training.fit import Resources
from raymed.training.spec import RunSpec
from raymed.tuning import machine_wait
from raymed.tuning.budget import Budget
from raymed.tuning.execution import run_search
from raymed.tuning.machine_wait import NONE_CAME, MachineWait
from raymed.tuning.result import conclude_search
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import REASON

GPU = Resources(workers=2, min_workers=2, cpus=8, gpus=1)


def test_the_search_ends_once_nothing_trains_and_its_time_is_over() -> None:
    over = False
    wait = MachineWait(GPU, lambda: over, "")
    assert not wait.stop_all()
    for number in (0, 1):
        wait.begins(number)
    wait.reports(0)
    over = True
    assert not wait.stop_all(), "a trial that trains ends by itself, with its epoch"
    wait.ends(0)
    assert wait.stop_all() and wait.trials == {1}
    wait.reports(1)
    wait.begins(1)
    assert wait.stop_all(), "one that lost its machine waits again"
    wait.ends(1)
    assert not wait.stop_all()


def test_a_person_is_told_what_is_waited_for_and_what_the_cloud_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The autoscaler's own report, as it writes it into Ray's store."""
    refusal = UnavailableNodeInformation("InsufficientInstanceCapacity", "We have no g6.2xlarge in eu-central-1a.")
    report = AutoscalerSummary(
        active_nodes={"head": 1},
        idle_nodes={},
        pending_nodes=[("10.0.0.7", "worker-a10g", "setting-up")],
        pending_launches={"worker-a10g": 1},
        failed_nodes=[("10.0.0.8", "worker-a10g")],
        node_availability_summary=NodeAvailabilitySummary(
            {"worker-l4": NodeAvailabilityRecord("worker-l4", False, 0.0, refusal)}
        ),
    )
    kept = json.dumps({"autoscaler_report": dataclasses.asdict(report)}).encode()
    monkeypatch.setattr(autoscaler, "autoscaling_status", lambda: kept)
    monkeypatch.setattr(autoscaler, "told", lambda _: b'{"failed": {"worker-a10g": [1, "`make` failed"]}, "is_over": false}')
    monkeypatch.setattr(machine_wait, "PERIOD", 0.02)
    with caplog.at_level(logging.INFO, "raymed"), MachineWait(GPU, lambda: False, "2026-01-02 07:00 CET") as wait:
        wait.begins(3)
        deadline = time.monotonic() + 10
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.02)
        wait.reports(3)
    assert caplog.messages[0] == (
        "1 trial waits for machines (2 x 8 CPUs and 1 GPU each); on their way: 2 x worker-a10g; no worker-l4: "
        "InsufficientInstanceCapacity: We have no g6.2xlarge in eu-central-1a.; "
        "the set-up of worker-a10g failed (try 1 of 3): `make` failed; lost so far: 1 x worker-a10g; "
        "until 2026-01-02 07:00 CET"
    )


def test_without_an_autoscaler_nothing_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscaler, "autoscaling_status", lambda: None)
    assert autoscaler.machines_to_come() == ""


def test_set_ups_that_fail_together_are_one_try_and_one_that_succeeds_begins_anew() -> None:
    found = autoscaler.SetUps(asked={"l4"})
    for _ in range(2):
        beginnings = [clock.seconds() for _ in range(5)]  # of machines that were launched at once
        for began in beginnings:
            found.ended("l4", began, "`make` ended with status 2")
    assert found.failed["l4"][0] == 2 and not found.given_up("l4")
    found.ended("l4", clock.seconds(), "")
    for number in range(autoscaler.TRIES):
        assert not found.given_up("l4"), number
        found.ended("l4", clock.seconds(), "`make` ended with status 2")
    assert found.given_up("l4")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_search_ends_where_no_machine_can_be_set_up_and_the_same_command_goes_on(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_wait, "PERIOD", 0.2)
    monkeypatch.setattr(machine_wait, "machines_to_come", lambda: "no l4 any more: its set-up failed 3 times: `make`")
    monkeypatch.setattr(machine_wait, "none_can_come", lambda: True)
    monkeypatch.setenv("RAYMED_CAPACITY", "CPU=2,GPU=1")
    search = waiting_search(prepared, tmp_path)
    with pytest.raises(RunError, match=r"no machine can be set up .*its set-up failed 3 times: `make`"):
        run_search(search)
    study = search.open_study()
    assert {trial.state for trial in study.trials} == {TrialState.RUNNING}, "they are not taken up again"
    study.close()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_search_whose_machines_never_come_ends_in_time_and_says_so(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hours are over five seconds after the first trial has begun to wait."""
    monkeypatch.setenv("RAYMED_CAPACITY", "CPU=2,GPU=1")
    waiting: list[float] = []
    begins = MachineWait.begins
    monkeypatch.setattr(MachineWait, "begins", lambda wait, number: (waiting.append(time.monotonic()), begins(wait, number)))
    monkeypatch.setattr(
        Budget, "seconds_left", property(lambda _: 0.0 if waiting and time.monotonic() - waiting[0] > 5 else 3600.0)
    )
    search = waiting_search(prepared, tmp_path)
    study = run_search(search)
    assert time.monotonic() - waiting[0] < 60, "Ray Train waits for machines for ever"
    assert {trial.state for trial in study.trials} == {TrialState.PRUNED}
    assert {trial.user_attrs[REASON] for trial in study.trials} == {NONE_CAME}
    with pytest.raises(RunError, match=NONE_CAME):
        conclude_search(search, study)


def waiting_search(prepared: Prepared, folder: Path) -> Search:
    train = TrainSettings(epochs=1, global_batch=8, micro_batch=8)
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("waits", str(folder), prepared.folder.uri, recipe, train)
    space = SearchSettings(space={"train.lr": Dimension(1e-4, 1e-2, log=True)})
    return Search(template, space, Budget(trials=2, seconds=3600.0), f"sqlite:///{folder}/mlflow.db")
