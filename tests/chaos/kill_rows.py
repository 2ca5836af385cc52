"""A row about one search whose training processes are killed again and again."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from conftest import write_prepared
from search_rows import SCRIPT
from small_search import small_search

from raymed.training.fit import RESTARTS
from raymed.tuning.trial_epochs import CURVE, curve

KILLS = 4  # of a trial: it has three epochs, in some nights one, and fails where too many kills come without a new one
WAIT = 3.0  # seconds at most between seeing that a trial trains and its kill


def killed_night(tries: int, seed: int, folder: Path) -> str:
    """SIGKILL of the process that trains, up to `tries` times within one search, wherever it stands."""
    draw, trials, kills = random.Random(seed), -(-tries // KILLS), 0
    write_prepared(folder / "data")
    (folder / "hold").touch()  # or most of a small trial would be its start
    whole = _searched(folder, "whole", trials, lambda _: None)
    epochs, since = -1, 0

    def kill(search: psutil.Process) -> None:
        nonlocal epochs, since, kills
        training = [] if kills == tries else _training(search)
        if not training:
            return
        time.sleep(draw.uniform(0, WAIT))
        epochs, before = _epochs(folder / "killed"), epochs
        since = since if epochs == before else 0
        if since < RESTARTS:
            with contextlib.suppress(psutil.NoSuchProcess):
                training[0].kill()
                training[0].wait(60)
                kills, since = kills + 1, since + 1
                print(f"kill {kills} of {tries}, where {epochs} epochs were known", file=sys.stderr, flush=True)

    killed = _searched(folder, "killed", trials, kill)
    assert killed[1] == whole[1], f"killed: {killed[1]}\nundisturbed: {whole[1]}"
    return (
        f"{kills} kills in one search of {trials} trials: the same trials and ends, losses bit-equal, each epoch once in "
        f"MLflow; {killed[0]:.0f} s against {whole[0]:.0f} s undisturbed ({killed[0] / whole[0]:.2f} times)"
    )


def _searched(
    folder: Path, name: str, trials: int, meanwhile: Callable[[psutil.Process], None]
) -> tuple[float, list[tuple[object, ...]]]:
    """Seconds of a search, and settings, end and losses of each trial; MLflow has each epoch once."""
    started, log = time.monotonic(), folder / f"{name}.log"
    with log.open("wb") as said:
        command = [sys.executable, str(SCRIPT), str(folder), name, str(trials)]
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        meanwhile(watched)
        time.sleep(0.1)
    seconds = time.monotonic() - started
    assert process.returncode == 0, log.read_text()[-2000:]
    search = small_search(folder, name, trials)
    study, tracker = search.open_study(), search.open_tracker()
    assert len(study.trials) == trials
    found: list[tuple[object, ...]] = []
    for trial in study.trials:
        run = str(tracker.find(search.trial_key(trial)))
        steps = [each.step for each in tracker.client.get_metric_history(run, "val_loss")]
        assert steps == sorted(curve(trial)), f"MLflow has {steps} of trial {trial.number}"
        found.append((trial.params, trial.state.name, curve(trial), trial.intermediate_values))
    return seconds, found


def _training(search: psutil.Process) -> list[psutil.Process]:
    """Of a search's processes those that train, each alone with its trial."""
    found = []
    for process in search.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ImplicitFunc.train" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _epochs(search: Path) -> int:
    """How many epochs the search knows of."""
    record = search / "study.journal"
    return record.read_text(errors="replace").count(f'"{CURVE}/') if record.is_file() else 0
