"""Rows about storage: one that fills up, and one that is an object store."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import small
from conftest import write_prepared
from object_store import object_store
from optuna.trial import TrialState
from ray import cloudpickle
from small import Full

from raymed.cluster.connection import connect
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.tracking.server import answers
from raymed.tracking.tracker import Tracker
from raymed.training.checkpoint import Progress, fetch_newest
from raymed.training.engine import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.execution import run_search
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.study import REASON

cloudpickle.register_pickle_by_value(small)  # workers cannot import tests

REPOSITORY = Path(__file__).parents[2]


def storage_full(tries: int, seed: int, folder: Path) -> str:
    """The disk of a run fills up in the second epoch; later there is room again. Needs root."""
    if os.geteuid() != 0:
        return "skipped: mounting a small disk needs root"
    connect()
    prepared = write_prepared(folder / "data")
    settings = TrainSettings(epochs=2, global_batch=16, micro_batch=5, norm_group=5, lr=3e-3, checkpoint_steps=1)
    plain = Full(**vars(Full.for_data(prepared.labels, prepared.size)))
    spec = RunSpec("run", str(folder), prepared.folder.uri, plain, settings)
    whole = Search(spec, SearchSettings(), Budget(1), f"sqlite:///{folder}/mlflow.db")
    (expected,) = run_search(whole).trials
    for attempt in range(tries):
        disk = folder / f"disk-{attempt}"
        with _small_disk(disk):
            harmed = dataclasses.replace(plain, disk=str(disk))
            run = dataclasses.replace(spec, storage=str(disk), recipe=harmed)
            search = dataclasses.replace(whole, template=run, tracking_uri=f"sqlite:///{folder}/mlflow-{attempt}.db")
            try:
                reason = run_search(search).trials[-1].user_attrs[REASON]
            except UserError as error:  # the record lies on that disk too
                reason = str(error)
            assert str(disk) in reason and "Free space" in reason, reason
            left = fetch_newest(search.run_spec(0, {}).folder, folder / f"left-{attempt}")
            assert left is not None and Progress.read(left).global_step >= 5, "an earlier checkpoint was touched"
            harmed.free()
            ray.shutdown()  # the process that was told has ended, and its workers with it
            connect()
            found = run_search(dataclasses.replace(search, template=dataclasses.replace(run, recipe=plain))).trials[-1]
            assert found.state == TrialState.COMPLETE and found.intermediate_values == expected.intermediate_values
    return f"{tries} of {tries} said what to do, left the earlier checkpoints whole and went on to the same losses"


def s3(tries: int, seed: int, folder: Path) -> str:
    """Data, checkpoints, record and artefacts in a bucket; the job is killed and goes on, and its model is promoted."""
    write_prepared(folder / "data")
    for attempt in range(tries):
        with object_store() as bucket, _tracking(folder / f"head-{attempt}", bucket) as tracking:
            source, storage = Folder.at(folder / "data"), Folder.at(f"{bucket}/runs")
            for path in sorted(Path(source.path).rglob("*")):
                if path.is_file():
                    Folder.at(bucket).write(f"data/{path.relative_to(source.path)}", path.read_bytes())
            places = ["--storage", storage.uri, "--tracking-uri", tracking, "--json"]
            train = ["jobs/train_lung.py", "--data", f"{bucket}/data", "--name", "search", "--train.epochs", "4", *places]
            job = _job(train, folder / f"first-{attempt}.log")
            run = storage.child("search/trials/trial-0000")
            while not any(name.startswith("step-") for name in run.names()):
                assert job.poll() is None, (folder / f"first-{attempt}.log").read_text()[-2000:]
                time.sleep(0.2)
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            _forget_home()
            found = _finished(train, folder / f"again-{attempt}.log")
            tracker = Tracker.open(tracking, "raymed-lung")
            steps = [each.step for each in tracker.client.get_metric_history(found["run_id"], "val_loss")]
            assert steps == [1, 2, 3, 4], steps
            assert len(tracker.client.search_runs([tracker.experiment_id])) == 2, "a run and its parent"
            _finished(["jobs/promote.py", found["run_id"], *places], folder / f"promote-{attempt}.log")
            kept = Folder.at(bucket).child("runs/artifacts")
            assert kept.names(), "MLflow's artefacts are not in the bucket"
            _forget_home()
    return f"{tries} of {tries} killed, gone on from the bucket and promoted; each epoch once in MLflow"


@contextmanager
def _small_disk(at: Path) -> Iterator[None]:
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "raymed-chaos", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


@contextmanager
def _tracking(home: Path, bucket: str) -> Iterator[str]:
    from ports import free_port

    port = free_port()
    words = ["jobs/serve_tracking.py", "--storage", f"{bucket}/runs", "--database", f"{home}/mlflow.db", "--port", str(port)]
    server = _job(words, home.with_suffix(".log"))
    try:
        while not answers(port):
            assert server.poll() is None, home.with_suffix(".log").read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _job(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    said = log.open("wb")
    command = [sys.executable, *words]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)


def _finished(words: list[str], log: Path) -> dict[str, Any]:
    """The summary that a job prints last."""
    job = _job(words, log)
    assert job.wait(900) == 0, log.read_text()[-2000:]
    summary: dict[str, Any] = json.loads(next(line for line in log.read_text().splitlines() if line.startswith('{"')))
    return summary


def _forget_home() -> None:
    """Leave what another machine would know: only the bucket."""
    for path in (Path.home() / ".raymed").glob("search-*"):
        shutil.rmtree(path)
