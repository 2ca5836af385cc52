"""The rows about a search's record: its lines damaged, and heads that are killed and follow each other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from optuna.trial import TrialState

from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.storage.lease import lease
from raymed.tuning.budget import Budget
from raymed.tuning.journal import COPY, Journal
from raymed.tuning.settings import Halving
from raymed.tuning.space import Dimension
from raymed.tuning.study import Study
from raymed.tuning.trial_epochs import curve

REPOSITORY = str(Path(__file__).parents[2])
TRIALS, EPOCHS = 4, 3
NONSENSE = (b"null\n", b"{}\n", b'{"op_code":99,"worker_id":"w"}\n', b"[" * 5000 + b"\n", b"\xff\x00\n")


def damaged_records(tries: int, seed: int, folder: Path) -> str:
    """A search is killed after any report; then a line of its record is changed, lost, doubled, exchanged, or nonsense."""
    draw = random.Random(seed)
    whole = _outcome(_study(folder / "whole", folder / "whole"))
    for attempt in range(tries):
        home, storage = folder / f"home-{attempt}", folder / f"storage-{attempt}"
        study = _study(home, storage)
        for _ in zip(range(draw.randrange(1, TRIALS * EPOCHS)), _reports(study), strict=False):
            pass
        study.close()
        harm = _harm_line(home / "study.journal", draw)
        found = _outcome(_study(home, storage))
        assert found == whole, f"{harm}: other trials, or other decisions"
    return f"{tries} damaged records: the same trials and decisions each time"


def two_heads(tries: int, seed: int, folder: Path) -> str:
    """Heads that share a storage only come one after the other, each killed at any moment, while others try to come in."""
    draw, whole = random.Random(seed), _outcome(_study(folder / "whole", folder / "whole"))
    refused = 0
    for attempt in range(tries):
        storage = folder / f"storage-{attempt}"
        for head in range(100):
            command = [sys.executable, __file__, str(folder / f"home-{attempt}-{head % 2}"), str(storage)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": REPOSITORY})
            assert process.stdout is not None
            process.stdout.readline()  # it holds the lease
            try:
                with lease(Folder.at(storage), "search"):
                    assert process.poll() is not None, "two were let in"
            except UserError:
                refused += 1
            time.sleep(draw.uniform(0, 0.3))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            if b"done" in process.stdout.read():
                break
        found = _outcome(_study(folder / f"home-{attempt}-{head % 2}", storage))
        assert found == whole, "other trials, or other decisions"
    return f"{tries} searches over two heads in turn: the same trials and decisions; {refused} others refused"


def _study(home: Path, storage: Path) -> Study:
    journal = Journal(home / "study.journal", Folder.at(storage))
    space = {"x": Dimension(0.0, 1.0), "y": Dimension(choices=("a", "b"))}
    return Study(journal, "search", space, [{"x": 0.25, "y": "b"}], Halving(1, 3), seed=7)


def _reports(study: Study) -> Iterator[None]:
    """Search to the end; a trial's losses are a function of its settings and the epoch, as they are of a real one."""
    budget = study.begin(Budget(TRIALS))
    while asked := study.ask(budget):
        number, params = asked
        for epoch in range(max(1, len(study.trial(number).intermediate_values)), EPOCHS + 1):
            loss = float(params["x"]) + (params["y"] == "a") - 0.1 * epoch
            told = {"val_loss": loss, "best_val_loss": loss, "best_epoch": epoch, "seconds": 1.0, "model": f"epoch-{epoch}"}
            stop = study.decided(number, epoch)
            if stop is None:
                with study.together():
                    stop = "halved" if study.report(number, epoch, told) else ""
                    study.decide(number, epoch, stop)
            if stop or epoch == EPOCHS:
                study.tell(number, TrialState.PRUNED if stop else TrialState.COMPLETE, stop)
                yield
                break
            yield


def _outcome(study: Study) -> list[tuple[object, ...]]:
    for _ in _reports(study):
        pass
    study.close()
    return [(trial.params, trial.state, trial.intermediate_values, curve(trial)) for trial in study.trials]


def _harm_line(path: Path, draw: random.Random) -> str:
    """Damage a line of a record; returns how."""
    lines = path.read_bytes().splitlines(keepends=True)
    place = draw.randrange(1, len(lines) - 1)
    harm = draw.choice(("digit", "lost", "doubled", "exchanged", "nonsense", "cut", "all"))
    if harm == "digit":
        places = [index for index, byte in enumerate(lines[place]) if 48 <= byte <= 57]
        index = draw.choice(places)
        digit = b"0123456789"[(lines[place][index] - 47) % 10 : (lines[place][index] - 47) % 10 + 1]
        lines[place] = lines[place][:index] + digit + lines[place][index + 1 :]
    elif harm == "lost":
        del lines[place]
    elif harm == "doubled":
        lines.insert(place, lines[place])
    elif harm == "exchanged":
        lines[place], lines[place + 1] = lines[place + 1], lines[place]
    elif harm == "nonsense":
        lines[place] = draw.choice(NONSENSE)
    elif harm == "cut":
        lines = [*lines[:place], lines[place][:-3]]
    else:
        lines = []
    path.write_bytes(b"".join(lines))
    return f"line {place + 1} {harm}"


def _search_as_a_head(home: Path, storage: Path) -> None:
    with lease(Folder.at(storage), "search"):
        print("held", flush=True)
        study = _study(home, storage)
        for _ in _reports(study):
            while not (storage / COPY).exists() or (storage / COPY).stat().st_size < (home / "study.journal").stat().st_size:
                time.sleep(0.001)  # as fast as a storage is beside an epoch
            time.sleep(0.02)
        print("done", flush=True)
        signal.pause()


if __name__ == "__main__":
    _search_as_a_head(Path(sys.argv[1]), Path(sys.argv[2]))
