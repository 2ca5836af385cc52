"""The guide's overnight search: its four grid points first, then what they suggest; the files that the guide names."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.file_names import OVERNIGHT_BEST
from raymed.systems.mamba_vlm.output import write_best
from raymed.systems.mamba_vlm.overnight_options import BATCH, GRID, LR
from raymed.tuning.study import BEST_POINT, CHECKPOINT, REASON, Study
from raymed.tuning.trial_epochs import curve

if TYPE_CHECKING:
    from raymed.tuning.search import Search

PROGRESS = "progress.json"  # of a checkpoint that is all there
SUMMARY, LEADERBOARD = "overnight_best_summary.txt", "overnight_leaderboard"


@dataclass(frozen=True)
class Entry:
    """A trial on the leaderboard.

    Attributes:
        rank: from 1; None of a trial that left no checkpoint, which is on no rank.
        lr: its learning rate; `batch_size` its global batch.
        val_loss: its lowest; `best_epoch` that one's.
        state: finished, stopped early or failed, and why.
        log: file with the val_loss of every epoch.
        checkpoint: encoder and bridge as the guide's files have them; empty where it is none of the grid's and not the best.
    """

    trial: int
    rank: int | None
    lr: float
    batch_size: int
    val_loss: float | None
    best_epoch: int | None
    epochs: int
    state: str
    log: str
    checkpoint: str


def write_overnight(search: Search, study: Study, folder: Path) -> list[Entry]:
    """Write a log of each trial, the checkpoints of the grid's points and of the best trial, the summary and the leaderboard
    (JSON and CSV) into a folder; the entries, best first.

    A trial that left no checkpoint is on no rank: nothing of an earlier run is credited to it. One that failed after its
    best epoch has that epoch's, for the search registers it, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trials = sorted(study.trials, key=lambda trial: (not _ranked(trial), _loss(trial), trial.number))
    entries = [_write_trial(search, study.noun, trial, place, folder) for place, trial in enumerate(trials, start=1)]
    if entries and entries[0].rank == 1:
        shutil.copyfile(folder / entries[0].checkpoint, folder / OVERNIGHT_BEST)
    out = Folder.at(folder)
    out.write(SUMMARY, "\n".join(summary(entries)).encode())
    rows = [asdict(entry) for entry in entries]
    out.write(f"{LEADERBOARD}.json", json.dumps(rows, indent=1).encode())
    out.write(f"{LEADERBOARD}.csv", to_csv(pd.DataFrame(rows)))
    return entries


def summary(entries: Sequence[Entry]) -> list[str]:
    """A line for each trial, the best first."""
    lines = []
    for entry in entries:
        place = f"{entry.rank:3d}" if entry.rank else "  -"
        loss = "no val_loss" if entry.val_loss is None else f"val_loss {entry.val_loss:.6f} (epoch {entry.best_epoch})"
        lines.append(f"{place}  lr={entry.lr:.4g} bs={entry.batch_size}  {loss}  {entry.epochs} epochs, {entry.state}")
    return lines


def _write_trial(search: Search, noun: str, trial: FrozenTrial, place: int, folder: Path) -> Entry:
    spec = search.spec_of(trial)
    lr, batch = spec.train.lr, spec.train.global_batch
    called = f"lr{lr:.4g}_bs{batch}"
    started = trial.datetime_start.strftime("%Y%m%d_%H%M") if trial.datetime_start else "not_started"
    log = f"overnight_{called}_{started}.log"
    points = curve(trial)
    lines = (f"{noun} {point} val_loss {loss:.6f}\n" for point, loss in points.items())
    Folder.at(folder).write(log, "".join(lines).encode())
    ranked, checkpoint = _ranked(trial), ""
    if ranked and (place == 1 or {LR: lr, BATCH: batch} in GRID):
        checkpoint = f"vision_bridge_best_{called}.pt"
        is_written = (folder / checkpoint).is_file()
        if Folder.at(trial.user_attrs[CHECKPOINT]).exists(PROGRESS) or (place == 1 and not is_written):
            write_best(trial.user_attrs[CHECKPOINT], folder / checkpoint, spec)
        elif not is_written:  # once the search is judged, `keep_checkpoints champion` leaves no other's weights
            checkpoint = ""
    return Entry(
        trial=trial.number,
        rank=place if ranked else None,
        lr=lr,
        batch_size=batch,
        val_loss=_loss(trial) if ranked else None,
        best_epoch=trial.user_attrs.get(BEST_POINT) if ranked else None,
        epochs=len(points),
        state=_state(trial),
        log=log,
        checkpoint=checkpoint,
    )


def _ranked(trial: FrozenTrial) -> bool:
    return CHECKPOINT in trial.user_attrs and math.isfinite(_loss(trial))


def _loss(trial: FrozenTrial) -> float:
    """The lowest val_loss of a trial; infinity where it has none."""
    losses = [loss for loss in curve(trial).values() if math.isfinite(loss)]
    return min(losses, default=math.inf)


def _state(trial: FrozenTrial) -> str:
    names = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}
    reason = trial.user_attrs.get(REASON, "")
    return names.get(trial.state, "not finished") + (f": {reason}" if reason and trial.state == TrialState.FAIL else "")
