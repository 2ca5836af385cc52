"""The winner trained again on more rows, as visibly as a search's runs: epochs, time left, stops that save checkpoints.

Its temperature cannot be fitted on patients that it was trained on. So its configuration is trained once more without each
fold of train and val, and what these networks say of the fold left out fits the temperature (cross-fitting).
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial
from ray.exceptions import RayError
from ray.util.queue import Queue

from raymed.cluster.connection import HEAD
from raymed.data.stream import open_reader
from raymed.errors import RunError, StorageError
from raymed.job.job import resume_command
from raymed.registry.candidate import Refit
from raymed.training.checkpoint import Progress, fetch_newest
from raymed.training.fit import fit, in_storage
from raymed.training.frozen import keep_features
from raymed.training.loop import COMMON, FAILED
from raymed.training.reports import LOST, Reports
from raymed.training.spec import RunSpec
from raymed.training.stop_decisions import Hearing, deciding
from raymed.tuning import room
from raymed.tuning.interrupt import Interrupt
from raymed.tuning.progress import time_left
from raymed.tuning.search import Search
from raymed.tuning.storage_watch import StorageWatch
from raymed.tuning.study import BEST_POINT, SECONDS

log = logging.getLogger("raymed")

SPLITS = {"trainval": ("train", "val"), "all": ("train", "val", "test")}


def train_again(search: Search, best: FrozenTrial, splits: tuple[str, ...]) -> Refit:
    """Train the winner's configuration on more rows, as far as the winner was best; and without each fold.

    Raises:
        StorageError: the storage is full or read-only.
        RunError: it did not come to its end.
        KeyboardInterrupt: it was told to stop, and has saved a checkpoint.
    """
    winner, point = search.run_spec(best.number, best.params), best.user_attrs[BEST_POINT]
    whole, *folds = (_as_far(winner, point, again) for again in _trainings(winner, splits))
    each = room.whole_resources(search, whole)  # nothing else runs now
    log.info(
        "refit: trial %d on %s for %d %ss, then without each of %d folds for its temperature, %d workers of %d CPUs, %s",
        *(best.number, " + ".join(splits), whole.stop_after, whole.train.noun, len(folds), each.workers, each.cpus),
        time_left(seconds(search, best, splits)),
    )
    name = f"refit-{best.number:04d}"
    whole = dataclasses.replace(whole, name=f"{name}-{'-'.join(splits)}")
    folds = [dataclasses.replace(fold, name=f"{name}-without-fold-{fold.fold}") for fold in folds]
    return Refit(_train(search, whole), splits, tuple(_train(search, fold) for fold in folds))


def _trainings(winner: RunSpec, splits: tuple[str, ...]) -> list[RunSpec]:
    """The refit of a run, and the run without each fold of the data, on all patients that there are."""
    again = dataclasses.replace(winner, train_on=splits, sampling=winner.sampling.unlimited)
    patient = dataclasses.replace(winner.train, patience=0)  # the fold left out decides nothing
    folds = range(winner.open_data().folds)
    return [again, *(dataclasses.replace(again, train_on=("train",), fold=fold, train=patient) for fold in folds)]


def _train(search: Search, spec: RunSpec) -> str:
    """Train a run to its end; the last checkpoint's URI."""
    each = room.whole_resources(search, spec)
    rows = open_reader(spec.open_data(), spec.all_rows(spec.open_data()), spec.train.storage_minutes)
    source = keep_features([spec], rows, False, each, each.workers)
    with (
        _Listener(spec) as listener,
        deciding() as stop_decisions,
        Interrupt(stop_decisions) as interrupt,
        StorageWatch(
            search.template.folder,
            spec.train.storage_minutes,
            resume_command(),
            interrupt.stop,
            Hearing(stop_decisions).newest,
        ) as storage,
    ):
        for point in range(spec.train.validate_steps or 1, spec.stop_after, spec.train.validate_steps or 1):
            stop_decisions.give.remote(spec.name, point, False)  # nothing stops it early
        try:
            in_storage(spec, lambda: None)  # Ray Train would make the run's folder below the mount point
            fit(spec, source, each, stop_decisions, [listener.callback])
        except KeyboardInterrupt:
            if storage.gave_up:
                raise RunError(storage.gave_up) from None
            raise
        if interrupt.told:
            raise KeyboardInterrupt
    if COMMON in listener.last:
        raise StorageError(str(listener.last[FAILED]))
    return _at_its_end(spec, f": {listener.last[FAILED]}" if FAILED in listener.last else "")


def _at_its_end(spec: RunSpec, reason: str) -> str:
    """The URI of a run's last checkpoint.

    Args:
        reason: why it may have ended before; empty where none is known.

    Raises:
        RunError: that is not where the run was to end.
        StorageError: the storage was away for too long.
    """
    with tempfile.TemporaryDirectory() as temporary:

        def fetched() -> Path | None:
            return fetch_newest(spec.folder, Path(temporary))

        # that there is none is believed at a second look: the storage may have been away at the first
        newest = in_storage(spec, fetched) or in_storage(spec, fetched)
        progress = Progress() if newest is None else Progress.read(newest)
    point = progress.global_step if spec.train.validate_steps else progress.epoch
    if point < spec.stop_after:
        raise RunError(
            f"the training {spec.folder.uri} ended after {spec.train.noun} {point} of {spec.stop_after}{reason}. Nothing "
            "was registered. Run the same command again, or leave --refit out: the winner is registered as it was searched"
        )
    assert newest is not None
    return spec.folder.child(newest.name).uri


def seconds(search: Search, best: FrozenTrial, splits: tuple[str, ...]) -> float:
    """How long training a trial's configuration again will take, folds too, by the time that its epochs took."""
    epoch: float = best.user_attrs.get(SECONDS, 0.0) / max(1, best.last_step or 1)
    return best.user_attrs[BEST_POINT] * epoch * cost_of_epochs(search, search.spec_of(best), splits)


def cost_of_epochs(search: Search, spec: RunSpec, splits: tuple[str, ...]) -> float:
    """How long an epoch of the refit of a run takes, and of each fold's, in epochs of that run: it has more rows, and the
    machine for itself. A step has as many rows; but of a run that counts its epochs there are more steps."""
    prepared, had = spec.open_data(), room.trial_resources(search)[0]
    own, trainings = spec.plan(prepared, 0).rows, _trainings(spec, splits)
    rows = [1.0 if spec.train.steps else again.plan(prepared, 0).rows / own for again in trainings]
    has = room.whole_resources(search, trainings[0])
    return sum(rows) * (had.workers * had.cpus) / (has.workers * has.cpus)


def _as_far(spec: RunSpec, best: int, again: RunSpec) -> RunSpec:
    """Another training of a run that was best at the `best`-th epoch, or step, to that point."""
    prepared, train = spec.open_data(), spec.train
    if train.steps and not train.validate_steps:  # more rows make longer epochs: it goes by the steps of the run's
        steps = len(spec.plan(prepared, 0).batches)
        again = dataclasses.replace(again, train=dataclasses.replace(train, validate_steps=steps))
        best = min(best * steps, train.steps)
    elif train.validate_steps and not train.steps:  # as far along a schedule that has more steps
        best = round(best * again.total_steps(prepared) / spec.total_steps(prepared))
    return dataclasses.replace(again, stop_after=best)


class _Listener:
    """While entered, tells of each epoch of one run, which reports through Ray's queue.

    Attributes:
        callback: for the run.
        last: what it reported last.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec, self._queue = spec, Queue(actor_options={"num_cpus": 0, "resources": HEAD})
        self.callback, self.last = Reports(self._queue), dict[str, Any]()
        self._thread = threading.Thread(target=self._listen, name="refit progress", daemon=True)

    def __enter__(self) -> _Listener:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._queue.put(None)
            self._thread.join()
        self._queue.shutdown(force=True)

    def _listen(self) -> None:
        while (result := self._next()) is not None:
            if LOST in result:
                log.warning("refit  %s", result[LOST])
                continue
            self.last = result
            if "finished" in result:
                self._tell(result)

    def _next(self) -> dict[str, Any] | None:
        try:
            result: dict[str, Any] | None = self._queue.get()
        except RayError:  # the run was cut off
            return None
        return result

    def _tell(self, result: Mapping[str, Any]) -> None:
        train, last = self._spec.train, self._spec.stop_after
        point, loss = int(result[train.counted]), result.get("train_loss")
        said = "" if loss is None else f"  train_loss {loss:.4f}"
        seconds = (float(result["seconds"]) + float(result.get("pause_seconds", 0.0))) / (train.validate_steps or 1)
        left = time_left((last - point) * seconds) if point < last else "done"
        log.info("refit  %s %d/%d%s  |  %s", train.noun, point, last, said, left)
