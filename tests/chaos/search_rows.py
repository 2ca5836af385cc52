"""Rows of the table about whole searches: bad trials, stopped trials, many trials, a lost head."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harmful
import psutil
import ray
import small
from conftest import RAY_TOKEN, write_prepared
from harmful import HARMS, Harmful
from optuna.trial import TrialState
from ray import cloudpickle
from ray.util import placement_group_table
from small import Small
from small_search import small_search

from raymed.cluster.connection import connect
from raymed.data.prepared import Prepared
from raymed.training.engine import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.execution import run_search
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.study import REASON, Halving

for each in (harmful, small):
    cloudpickle.register_pickle_by_value(each)  # workers cannot import tests

SCRIPT = Path(__file__).with_name("small_search.py")
OF_A_TRIAL = {"ImplicitFunc", "TrainController", "RayTrainWorker", "SynchronizationActor"}  # actors' classes
SETTLED = 5.0  # seconds, within which a trial's resources must be back
ENDED = 60.0  # seconds, after which a process that is still there is taken for a leak
TRAIN = TrainSettings(epochs=2, global_batch=8, micro_batch=8, lr=3e-3, stall_minutes=0.2)


def bad_trials(tries: int, seed: int, folder: Path) -> str:
    """One of 8 trials diverges, runs out of memory, hangs, or has a bug; each kind in a search of its own, `tries` times."""
    connect()
    prepared = write_prepared(folder / "data")
    clean = _eight(prepared, folder, "clean", "", -1)
    for attempt in range(tries):
        for place, (harm, says) in enumerate(HARMS.items()):
            bad = (place + attempt + seed) % 8
            found = _eight(prepared, folder, f"{harm}-{attempt}", harm, bad)
            reason = str(found.pop(bad))
            assert says in reason, f"{harm}: the reason says {reason}"
            assert found == {number: value for number, value in clean.items() if number != bad}, harm
    return f"{4 * tries} searches: 7 of 8 trials as in a clean search, the bad one FAILED with its reason; ghosts 0"


def stopped_trials(tries: int, seed: int, folder: Path) -> str:
    """After a good trial `tries` worse ones, one by one, each stopped early; how soon the resources of each are back."""
    connect()
    write_prepared(folder / "data")
    search = small_search(folder, "stopped", tries + 1, Halving(1, tries + 1), seed)
    free = ray.cluster_resources()["CPU"]
    ended: list[float] = []

    def watch(spec: RunSpec, happened: str, result: Mapping[str, Any]) -> None:
        if happened in ("PRUNED", "COMPLETE"):
            ended.append(time.monotonic())

    with _sampled(lambda: ray.available_resources().get("CPU", 0.0)) as samples:
        study = run_search(search, watch)
        time.sleep(SETTLED)
    back = [next((at for at, cpus in samples if at > end and cpus > free - 0.1), float("inf")) - end for end in ended]
    pruned = sum(trial.state == TrialState.PRUNED for trial in study.trials)
    assert pruned >= 0.9 * tries, f"only {pruned} of {tries} were stopped: too little is shown"
    assert max(back) <= SETTLED, f"resources came back after {max(back):.1f} s"
    _assert_no_leaks()
    return f"{pruned} of {tries} stopped; resources back after {max(back):.1f} s at most; leaks 0"


def small_trials(tries: int, seed: int, folder: Path) -> str:
    """`tries` small trials in a row: the driver's memory and open files, from the tenth part of them on."""
    connect()
    write_prepared(folder / "data")
    search = small_search(folder, "small", tries, seed=seed)
    search = dataclasses.replace(search, settings=dataclasses.replace(search.settings, concurrent=0))
    process, seen = psutil.Process(), list[tuple[int, int]]()

    def watch(spec: RunSpec, happened: str, result: Mapping[str, Any]) -> None:
        if happened in ("PRUNED", "COMPLETE"):
            seen.append((process.memory_info().rss >> 20, process.num_fds()))

    run_search(search, watch)
    (early, files), (late, files_late) = seen[len(seen) // 10], seen[-1]
    assert late <= 1.15 * early + 20, f"{early} -> {late} MiB"
    assert files_late <= files + 20, f"{files} -> {files_late} open files"
    _assert_no_leaks()
    return f"{len(seen)} trials: driver {early} -> {late} MiB, {files} -> {files_late} open files"


def head_lost(tries: int, seed: int, folder: Path) -> str:
    """The head's processes are killed in the middle of a submitted search; a fresh head, and the job once more."""
    write_prepared(folder / "data")
    for attempt in range(tries):
        name = f"lost-{attempt}"
        with _head(folder, f"{name}-first") as submit:
            job = submit(name)
            trials = folder / name / "trials"
            while len(list(trials.glob("trial-0001/step-*/sealed-000.json"))) < 1:
                assert job.poll() is None, "the search ended before the head was lost"
                time.sleep(0.2)
        job.wait(120)
        before = {path.parent.name for path in trials.glob("trial-0001/step-*/sealed-000.json")}
        with _head(folder, f"{name}-second") as submit:
            assert submit(name).wait(900) == 0, "the search did not go on"
        after = {path.name for path in trials.glob("trial-0001/step-*")}
        newest = max(_step(each) for each in before)
        again = [each for each in after - before if _step(each) <= newest]
        assert not again, f"steps were taken again: {again}"
    return f"{tries} heads lost: each search completed, work before the newest checkpoint repeated 0 times"


def _eight(prepared: Prepared, folder: Path, name: str, harm: str, bad: int) -> dict[int, float | str]:
    """The best val_loss of each of eight trials, or why it failed; nothing may be left running anywhere."""
    settings = vars(Small.for_data(prepared.labels, prepared.size))
    specs = {
        f"run-{number}": RunSpec(
            name,
            str(folder),
            prepared.folder.uri,
            Harmful(**settings, harm=harm if number == bad else ""),
            TRAIN,
            seed=number,
        )
        for number in range(8)
    }
    search = Search(specs["run-0"], SearchSettings(), Budget(0), f"sqlite:///{folder}/{name}.db", runs=specs)
    study = run_search(search)
    tracker = search.open_tracker()
    running = [
        run.info.run_name for run in tracker.client.search_runs([tracker.experiment_id]) if run.info.status == "RUNNING"
    ]
    assert running in ([], [name]), f"still running in MLflow: {running}"  # the parent ends with the morning
    assert all(trial.state.is_finished() for trial in study.trials)
    time.sleep(SETTLED)
    assert ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], "resources are not back"
    _assert_no_leaks()
    return {
        number: trial.user_attrs[REASON] if trial.state == TrialState.FAIL else min(trial.intermediate_values.values())
        for number, trial in enumerate(study.trials)
    }


def _assert_no_leaks() -> None:
    """What is left stays; what is only slow to end on a busy machine is given time."""
    until = time.monotonic() + ENDED
    while (left := _left()) and time.monotonic() < until:
        time.sleep(1)
    assert not left, f"left: {left}"


def _left() -> list[str]:
    groups = [str(group["state"]) for group in placement_group_table().values() if group["state"] != "REMOVED"]
    actors = [each["ActorClassName"] for each in ray._private.state.actors().values() if each["State"] == "ALIVE"]
    return groups + [name for name in actors if name in OF_A_TRIAL]


@contextmanager
def _sampled(look: Any) -> Iterator[list[tuple[float, float]]]:
    """What `look` says, twenty times a second, with the time."""
    samples, over = list[tuple[float, float]](), threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            samples.append((time.monotonic(), look()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


@contextmanager
def _head(folder: Path, name: str) -> Iterator[Any]:
    """A head with a dashboard on loopback, killed with all its processes at the end; gives a way to submit jobs."""
    from ports import free_port

    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **RAY_TOKEN,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    tool = str(Path(sys.executable).parent / "ray")
    start = [
        tool,
        "start",
        "--head",
        "--port=0",
        "--num-cpus=3",
        "--dashboard-host=127.0.0.1",
        "--disable-usage-stats",
        "--block",
    ]
    start += [f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"]
    start += [f"--ray-client-server-port={free_port()}", f"--temp-dir=/tmp/r{os.getpid()}{name[-8:]}"]
    log = (folder / f"{name}.log").open("wb")
    head = subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True)

    def submit(name: str) -> subprocess.Popen[bytes]:
        command = [tool, "job", "submit", f"--address=http://127.0.0.1:{port}", "--", sys.executable]
        ask = [tool, "job", "list", f"--address=http://127.0.0.1:{port}"]
        end = time.monotonic() + 180
        while subprocess.run(ask, env=environment, capture_output=True, timeout=100).returncode:
            assert time.monotonic() < end, "the head did not start"
            time.sleep(1)
        return subprocess.Popen([*command, str(SCRIPT), str(folder), name, "3"], env=environment, stdout=log, stderr=log)

    try:
        yield submit
    finally:
        for process in _family(head.pid):
            process.kill()
        head.wait()


def _family(pid: int) -> list[psutil.Process]:
    """A process and all that come from it."""
    root = psutil.Process(pid)
    return [*root.children(recursive=True), root]


def _step(name: str) -> int:
    return int(name.split("-")[1])
