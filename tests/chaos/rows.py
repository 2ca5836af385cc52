"""What can go wrong, done on purpose: each row of the table that `make chaos` prints.

A row is a function of (tries, seed, folder) that returns what was seen, and raises where that is not what must be.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

import signals
import small_signals
from away_rows import judging_told, raylet_lost, search_full, storage_away
from conftest import RAY_TOKEN, write_prepared
from damage_rows import damaged_models, damaged_shards
from kill_rows import killed_night
from leak_rows import leaks
from ports import free_port
from ray import cloudpickle
from ray.train import UserCallback
from record_rows import damaged_records, two_heads
from search_rows import SCRIPT, bad_trials, head_lost, small_trials, stopped_trials
from small import Small
from small_search import small_search
from small_signals import SmallSignalling
from start_rows import busy_starts
from storage_rows import s3, storage_full
from test_state import SETTINGS, train

from raymed.data.image import ImageSettings
from raymed.data.prepare import PrepareSettings, prepare
from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.storage.folder import Folder
from raymed.tracking.outbox import Outbox
from raymed.tracking.tracker import Tracker
from raymed.training.checkpoint import Progress, fetch_newest, new_name, publish, verify
from raymed.training.engine import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.journal import Journal

for each in (signals, small_signals):
    cloudpickle.register_pickle_by_value(each)  # workers cannot import tests

Row = Callable[[int, int, Path], str]


def worker_kills(tries: int, seed: int, folder: Path) -> str:
    """SIGKILL of one of two workers at a random micro-batch, ZeRO 1, 2 and 3 in turn."""
    draw, lost = random.Random(seed), 0
    prepared = write_prepared(folder / "data")
    whole = {stage: _history(prepared, _spec(prepared, folder, f"whole-{stage}", stage)) for stage in (1, 2, 3)}
    for attempt in range(tries):
        stage, at = attempt % 3 + 1, draw.randrange(2, 18)
        spec = _spec(prepared, folder, f"killed-{attempt}", stage)
        count = folder / f"count-{attempt}"
        found = _history(prepared, _signalled(spec, count, at, signal.SIGKILL, draw.uniform(0, 1)))
        assert count.with_suffix(".sent").exists(), "nothing was killed"
        lost += found != whole[stage]
    assert not lost, f"{lost} of {tries} runs computed other losses"
    return f"{tries} of {tries} finished, losses bit-equal to the uninterrupted run's"


def sigterm(tries: int, seed: int, folder: Path) -> str:
    """SIGTERM to a worker in the second epoch; a checkpoint from within that epoch must be there before 30 s are over."""
    draw, slowest = random.Random(seed), 0.0
    prepared = write_prepared(folder / "data")
    for attempt in range(tries):
        count, committed = folder / f"count-{attempt}", folder / f"committed-{attempt}"
        spec = dataclasses.replace(_spec(prepared, folder, f"told-{attempt}", 1), workers=1)
        spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, checkpoint_steps=0))
        # One worker's steps are of 4 micro-batches: the signal comes in the second, third or fourth of five.
        spec = _signalled(spec, count, draw.randrange(5, 17), signal.SIGTERM, draw.uniform(0, 1))
        _history(prepared, spec, [signals.Committed(str(committed))])
        sent = count.with_suffix(".sent").stat().st_mtime
        lines = [line.split() for line in committed.read_text().splitlines()]
        # That of the first epoch's end, step 5, may be on its way when the signal comes.
        at, step = next((float(at), int(step)) for at, step in lines if float(at) > sent and int(step) > 5)
        assert step < 10, f"the first checkpoint after the signal is of step {step}, the end of an epoch"
        slowest = max(slowest, at - sent)
    assert slowest < 30, f"the slowest checkpoint came after {slowest:.1f} s"
    return f"{tries} of {tries} saved within the epoch, the slowest after {slowest:.1f} s"


def driver_kills(tries: int, seed: int, folder: Path) -> str:
    """`kill -9` of a search's process group at random moments, and the same command again."""
    draw = random.Random(seed)
    write_prepared(folder / "data")
    started = time.monotonic()
    assert _start_search(folder, "whole").wait() == 0
    seconds = time.monotonic() - started
    for kill in range(tries):
        process = _start_search(folder, "killed")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.1, 0.5) * seconds)
            raise AssertionError(f"the search ended before kill {kill + 1}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert _start_search(folder, "killed").wait() == 0
    found, whole = (_read_search(folder, name) for name in ("killed", "whole"))
    assert found == whole, f"killed: {found}\nuninterrupted: {whole}"
    pruned = sum(state == "PRUNED" for _, state, _ in whole)
    return f"{tries} kills: the same {len(whole)} trials, settings and losses, {pruned} stopped; second runs and steps 0"


def torn_writes(tries: int, seed: int, folder: Path) -> str:
    """A kill during the write of a checkpoint, at `tries` places of it; its files may be written in any order."""
    draw, whole = random.Random(seed), _checkpoint(folder / "whole")
    contents = [(path.relative_to(whole), path.read_bytes()) for path in sorted(whole.rglob("*")) if path.is_file()]
    total = sum(len(content) for _, content in contents)
    for place in range(tries):
        torn, left = folder / f"torn-{place}", total * place // tries
        draw.shuffle(contents)
        for name, content in contents:
            (torn / name).parent.mkdir(parents=True, exist_ok=True)
            if left > 0:
                (torn / name).write_bytes(content[:left])
            left -= len(content)
        with pytest.raises((RunError, ValueError, KeyError)):
            verify(torn)
    return f"torn checkpoints loaded: 0 of {tries}"


def damaged_files(tries: int, seed: int, folder: Path) -> str:
    """The newest checkpoint's files and the search's record, each cut short, emptied or removed."""
    draw, files = random.Random(seed), 0
    run = folder / "run"
    _checkpoint(run, 3)
    newest = _checkpoint(run, 7)
    for path in [path for path in newest.rglob("*") if path.is_file()]:
        for harm in ("cut", "emptied", "removed"):
            kept = _harm(path, harm, draw)
            found = fetch_newest(Folder.at(run), folder / "local")
            assert found is not None and Progress.read(found).global_step == 3, f"{path.name} {harm}"
            path.write_bytes(kept)
            shutil.rmtree(folder / "local")
            files += 1
    entries = [{"number": number} for number in range(20)]
    journal = folder / "study.journal"
    for _ in range(tries):
        shutil.rmtree(folder / "copy", ignore_errors=True)
        journal.unlink(missing_ok=True)
        opened = Journal(journal, Folder.at(folder / "copy"))
        for entry in entries:
            opened.append_logs([entry])
        opened.close()
        _harm(journal, draw.choice(("cut", "emptied", "removed")), draw)
        assert list(Journal(journal, Folder.at(folder / "copy")).read_logs(0)) == entries
        files += 1
    return f"{files} damaged files: the one before, or the copy, was used each time"


def other_workers(tries: int, seed: int, folder: Path) -> str:
    """2 -> 1 -> 2 workers, ZeRO 1, 2 and 3 in turn: difference of the next steps' losses."""
    worst = 0.0
    for attempt in range(tries):
        at = folder / str(attempt)
        at.mkdir()
        settings = dataclasses.replace(SETTINGS, zero_stage=attempt % 3 + 1, ema=0.0)
        whole = train(2, settings, None, {3: at / "start", 9: at / "end"})
        found = train(1, settings, at / "start", {6: at / "one"}, 3) + train(2, settings, at / "one", {9: at / "two"}, 6)
        worst = max(worst, *(abs(a - b) for a, b in zip(found, whole[3:], strict=True)))
    assert worst <= 1e-6, f"{worst:.1e}"
    return f"largest difference {worst:.1e}"


def elastic(tries: int, seed: int, folder: Path) -> str:
    """An elastic run on two machines: a spot notice, a machine that comes, and one that is lost without a word."""
    lines = []
    for attempt in range(tries):
        write_prepared(folder / str(attempt) / "data")
        command = [sys.executable, str(Path(__file__).with_name("elastic.py")), str(folder / str(attempt))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=os.environ | RAY_TOKEN)
        assert done.returncode == 0, done.stderr[-2000:]
        lines.append(done.stdout.splitlines()[-1])
    return "; ".join(lines)


def tracking_away(tries: int, seed: int, folder: Path) -> str:
    """The MLflow server is down for `tries` seconds while 100 epochs are reported."""
    port, uri = free_port(), f"sqlite:///{folder}/mlflow.db"
    with _server(uri, port) as address:
        tracker = Tracker.open(address, "chaos")
        run = tracker.run("run", "run")
    deliver = lambda entry: tracker.history.log_validation(run, entry["epoch"], {"val_loss": 0.5})  # noqa: E731
    outbox, longest = Outbox(folder / "outbox.jsonl", "MLflow", deliver), 0.0
    for epoch in range(1, 101):
        started = time.monotonic()
        outbox.put({"epoch": epoch})
        longest = max(longest, time.monotonic() - started)
        time.sleep(tries / 100)
    with _server(uri, port):
        outbox.close()
    steps = [each.step for each in Tracker.open(uri, "chaos").client.get_metric_history(run, "val_loss")]
    assert steps == list(range(1, 101)), steps
    assert longest < 1, f"a report waited {longest:.1f} s"
    return f"longest wait of a report {longest:.3f} s; 100 of 100 epochs, each once"


def many_writers(tries: int, seed: int, folder: Path) -> str:
    """`tries` trials from 8 processes at once into one SQLite database, 10 epochs each."""
    uri = f"sqlite:///{folder}/mlflow.db"
    tracker = Tracker.open(uri, "chaos")
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        pool.starmap(_write_trial, [(uri, number) for number in range(tries)])
    for number in range(tries):
        run = str(tracker.find(f"search/trial-{number}"))
        assert [each.step for each in tracker.client.get_metric_history(run, "val_loss")] == list(range(10))
    assert len(tracker.client.search_runs([tracker.experiment_id])) == tries
    return f"{tries} trials, {10 * tries} of {10 * tries} epochs; 'database is locked' 0"


def damaged_samples(tries: int, seed: int, folder: Path) -> str:
    """0.1 %, 1 % and 5 % of `tries` files damaged: all of them, and no other, are in the quarantine; 20 % stop the job."""
    draw, lines = np.random.default_rng(seed), []
    files = []
    for number in range(tries):
        patient = number // 4
        path = folder / "source" / ("normal", "viral")[patient % 2] / f"p{patient:04d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (32, 32), np.uint8)).save(path)
        files.append(path)
    settings = PrepareSettings(labels="source", max_quarantine="10%", image=ImageSettings(size=28))
    whole = {path: path.read_bytes() for path in files}
    for share in (0.001, 0.01, 0.05, 0.2):
        damaged = [files[place] for place in draw.choice(tries, max(1, round(share * tries)), replace=False)]
        for path in damaged:
            _harm(path, draw.choice(["cut", "emptied"]), random.Random(seed))
        if share == 0.2:
            with pytest.raises(UserError, match=rf"\d+ of {tries} records cannot be used"):
                prepare(folder / "source", str(folder / f"prepared-{share}"), settings)
        else:
            prepare(folder / "source", str(folder / f"prepared-{share}"), settings)
            quarantine = (folder / f"prepared-{share}" / "quarantine.jsonl").read_text().splitlines()
            named = {Path(json.loads(line)["where"]).name for line in quarantine}
            assert named == {path.name for path in damaged}, f"{share}: {named ^ {path.name for path in damaged}}"
            lines.append(str(len(damaged)))
        for path in damaged:
            path.write_bytes(whole[path])
    return f"quarantine = the {', '.join(lines)} damaged of {tries}; 20 % stopped it with a count"


ROWS: dict[str, tuple[Row, int, int]] = {
    "worker_kills": (worker_kills, 30, 0),
    "driver_kills": (driver_kills, 5, 0),
    "killed_night": (killed_night, 200, 0),
    "sigterm": (sigterm, 20, 0),
    "torn_writes": (torn_writes, 50, 12),
    "damaged_files": (damaged_files, 50, 5),
    "damaged_records": (damaged_records, 500, 20),
    "two_heads": (two_heads, 20, 0),
    "other_workers": (other_workers, 3, 0),
    "elastic": (elastic, 1, 0),
    "storage_full": (storage_full, 2, 0),
    "search_full": (search_full, 2, 0),
    "storage_away": (storage_away, 1, 0),
    "raylet_lost": (raylet_lost, 2, 0),
    "judging_told": (judging_told, 4, 0),
    "s3": (s3, 1, 0),
    "tracking_away": (tracking_away, 60, 0),
    "many_writers": (many_writers, 50, 0),
    "leaks": (leaks, 5, 1),
    "damaged_samples": (damaged_samples, 1000, 100),
    "damaged_models": (damaged_models, 200, 0),
    "damaged_shards": (damaged_shards, 200, 0),
    "bad_trials": (bad_trials, 1, 0),
    "stopped_trials": (stopped_trials, 40, 0),
    "head_lost": (head_lost, 1, 0),
    "small_trials": (small_trials, 200, 0),
    "busy_starts": (busy_starts, 4, 0),
}
"""The rows, each with its tries in `make chaos` and in CI; 0 where CI has a test of its own for it."""


def _spec(prepared: Prepared, folder: Path, name: str, stage: int) -> RunSpec:
    """Two workers, two epochs of 18 micro-batches in 5 steps, a checkpoint after each."""
    settings = TrainSettings(
        epochs=2,
        global_batch=16,
        micro_batch=5,
        norm_group=5,
        lr=3e-3,
        zero_stage=stage,  # type: ignore[arg-type]
        checkpoint_steps=1,
    )
    recipe = Small.for_data(prepared.labels, prepared.size)
    return RunSpec(name, str(folder / "runs"), prepared.folder.uri, recipe, settings, workers=2)


def _signalled(spec: RunSpec, count: Path, at: int, number: int, wait: float) -> RunSpec:
    recipe = SmallSignalling(**vars(spec.recipe), at=at, count=str(count), signal=number, wait=wait)
    return dataclasses.replace(spec, recipe=recipe)


def _history(prepared: Prepared, spec: RunSpec, callbacks: Sequence[UserCallback] = ()) -> list[dict[str, float]]:
    """The losses of each epoch of a run, which is trained to its end."""
    from raymed.cluster.connection import connect
    from raymed.data.stream import stage
    from raymed.training.fit import fit, resources

    connect()
    fit(spec, stage(prepared, spec.all_rows(prepared)), resources(spec.workers, 1), callbacks=callbacks)
    newest = max(Path(spec.folder.path).glob("step-*"), key=lambda path: path.name[:13])
    return [{key: epoch[key] for key in ("val_loss", "train_loss")} for epoch in Progress.read(newest).history]


def _start_search(folder: Path, name: str) -> subprocess.Popen[bytes]:
    log = (folder / f"{name}.log").open("ab")
    command = [sys.executable, str(SCRIPT), str(folder), name, "6"]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _read_search(folder: Path, name: str) -> list[tuple[object, ...]]:
    """Settings, end, epochs and MLflow steps of each trial, of a search that has ended."""
    search = small_search(folder, name, 6)
    study, tracker = search.open_study(), search.open_tracker()
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert len(runs) == len(study.trials) + 1, "one run for each trial, and their parent"
    found: list[tuple[object, ...]] = []
    for trial in study.trials:
        run = str(tracker.find(search.trial_key(trial)))
        steps = [each.step for each in tracker.client.get_metric_history(run, "val_loss")]
        assert steps == sorted(trial.intermediate_values), "each epoch once"
        found.append((trial.params, trial.state.name, trial.intermediate_values))
    return found


def _checkpoint(run: Path, step: int = 5) -> Path:
    """A small whole checkpoint of a run."""
    part = run.parent / f"part-{step}"
    (part / "state").mkdir(parents=True)
    (part / "state" / "shard.pt").write_bytes(np.random.default_rng(step).bytes(5_000))
    Progress(epoch=1, step=step, global_step=step).write(part)
    publish(part, Folder.at(run), new_name(step, 0))
    return max(run.glob("step-*"))


def _harm(path: Path, harm: str, draw: random.Random) -> bytes:
    """Damage a file; returns what it held."""
    content = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(content[: draw.randrange(len(content)) if harm == "cut" else 0])
    return content


def _write_trial(uri: str, number: int) -> None:
    tracker = Tracker.open(uri, "chaos")
    run = tracker.run(f"search/trial-{number}", f"trial {number}")
    for epoch in range(10):
        tracker.history.log_validation(run, epoch, {"val_loss": 1 / (epoch + 1)})
    tracker.finish(run, "FINISHED")


@contextmanager
def _server(uri: str, port: int) -> Iterator[str]:
    """A real MLflow server, killed at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            assert server.poll() is None and time.monotonic() < end, "the server did not start"
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
