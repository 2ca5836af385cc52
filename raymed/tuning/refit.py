"""The winner trained again on more rows, as visibly as a search's runs: epochs, time left, stops that save checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import sys
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
from raymed.training.checkpoint import Progress, fetch_newest
from raymed.training.fit import fit
from raymed.training.loop import COMMON, FAILED
from raymed.training.reports import LOST, Reports
from raymed.training.spec import RunSpec
from raymed.training.stop_decisions import StopDecisions
from raymed.tuning.interrupt import Interrupt
from raymed.tuning.progress import time_left
from raymed.tuning.search import Search
from raymed.tuning.storage_watch import StorageWatch
from raymed.tuning.study import BEST_EPOCH, SECONDS

log = logging.getLogger("raymed")

SPLITS = {"trainval": ("train", "val"), "all": ("train", "val", "test")}


def train_again(search: Search, best: FrozenTrial, splits: tuple[str, ...]) -> str:
    """Train the winner's configuration on more rows, for as many epochs as the winner's best; the last checkpoint's URI.

    Raises:
        StorageError: the storage is full or read-only.
        RunError: it did not come to its end.
        KeyboardInterrupt: it was told to stop, and has saved a checkpoint.
    """
    name, last_epoch = f"refit-{best.number:04d}-{'-'.join(splits)}", best.user_attrs[BEST_EPOCH]
    spec = dataclasses.replace(
        _again(search, search.run_spec(best.number, best.params), splits), name=name, last_epoch=last_epoch
    )
    each = search.whole(spec)  # nothing else runs now
    log.info(
        "refit: trial %d on %s for %d epochs, %d workers of %d CPUs, %s",
        *(
            best.number,
            " + ".join(splits),
            spec.last_epoch,
            each.workers,
            each.cpus,
            time_left(seconds(search, best, splits)),
        ),
    )
    stop_decisions = StopDecisions.options(resources=HEAD).remote()  # type: ignore[attr-defined]
    for epoch in range(1, spec.last_epoch):  # nothing stops it early
        stop_decisions.give.remote(spec.name, epoch, False)
    source = open_reader(spec.open_data(), spec.all_rows(spec.open_data()))
    with (
        _Listener(spec.last_epoch) as listener,
        Interrupt(stop_decisions) as interrupt,
        StorageWatch(
            search.template.folder, spec.train.storage_minutes, resume_command(sys.argv), interrupt.stop
        ) as storage,
    ):
        try:
            fit(spec, source, each, stop_decisions, [listener.callback])
        except KeyboardInterrupt:
            if storage.gave_up:
                raise RunError(storage.gave_up) from None
            raise
        if interrupt.told:
            raise KeyboardInterrupt
    if COMMON in listener.last:
        raise StorageError(str(listener.last[FAILED]))
    with tempfile.TemporaryDirectory() as temporary:
        newest = fetch_newest(spec.folder, Path(temporary))
        progress = Progress() if newest is None else Progress.read(newest)
    if progress.epoch < spec.last_epoch:
        reason = f": {listener.last[FAILED]}" if FAILED in listener.last else ""
        raise RunError(
            f"the refit {spec.folder.uri} ended after epoch {progress.epoch} of {spec.last_epoch}{reason}. Nothing was "
            "registered. Run the same command again, or leave --refit out: the winner is then registered as it was searched"
        )
    return spec.folder.child(progress.model).uri


def seconds(search: Search, best: FrozenTrial, splits: tuple[str, ...]) -> float:
    """How long training a trial's configuration again will take, by the time that its epochs took."""
    epoch: float = best.user_attrs.get(SECONDS, 0.0) / max(1, best.last_step or 1)
    return best.user_attrs[BEST_EPOCH] * epoch * cost_of_epochs(search, search.spec_of(best), splits)


def cost_of_epochs(search: Search, spec: RunSpec, splits: tuple[str, ...]) -> float:
    """How long an epoch of the refit of a run takes, in epochs of that run: it has more rows, and the machine for itself."""
    again, prepared = _again(search, spec, splits), spec.open_data()
    had, has = search.resources()[0], search.whole(again)
    rows = again.plan(prepared, 0).rows / spec.plan(prepared, 0).rows
    return rows * (had.workers * had.cpus) / (has.workers * has.cpus)


def _again(search: Search, spec: RunSpec, splits: tuple[str, ...]) -> RunSpec:
    return dataclasses.replace(spec, train_on=splits, sampling=search.template.sampling.unlimited)


class _Listener:
    """While entered, tells of each epoch of one run, which reports through Ray's queue.

    Attributes:
        callback: for the run.
        last: what it reported last.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs, self._queue = epochs, Queue(actor_options={"num_cpus": 0, "resources": HEAD})
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
            if "val_loss" in result:
                self._tell(result)

    def _next(self) -> dict[str, Any] | None:
        try:
            result: dict[str, Any] | None = self._queue.get()
        except RayError:  # the run was cut off
            return None
        return result

    def _tell(self, result: Mapping[str, Any]) -> None:
        epoch, loss = int(result["epoch"]), result.get("train_loss")
        said = "" if loss is None else f"  train_loss {loss:.4f}"
        left = time_left((self._epochs - epoch) * float(result["seconds"])) if epoch < self._epochs else "done"
        log.info("refit  epoch %d/%d%s  |  %s", epoch, self._epochs, said, left)
