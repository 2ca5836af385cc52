"""A worker whose state is a digest of all that it was trained on: two runs are the same where their digests are.

It goes on, saves and reports in the order that the product's loop does, with the product's own checkpoints, retention and
uploads; only the network is missing. What the product writes beside its next steps is written at once here.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machines import Killed, World
from ray_model import Attempt

from raymed.data.leak import guard
from raymed.errors import CommonError, RunError, StorageError, UserError
from raymed.recipes.exported import RECIPE_FILE
from raymed.recipes.metric import VAL_LOSS
from raymed.storage import disk
from raymed.storage.availability import require_there, wait_for
from raymed.storage.seal import seal as seal_model
from raymed.training.checkpoint import Progress, checkpoint_names, fetch_newest, new_name, seal
from raymed.training.course import Course
from raymed.training.loop import COMMON, DESCRIPTION, FAILED, MODEL, PASSED_OVER, SAVED
from raymed.training.retention import Retention
from raymed.training.spec import RunSpec
from raymed.training.step_log import STEPS, TOTAL_STEPS
from raymed.training.upload import keep, upload

STEP_SECONDS = 20.0
WEIGHTS = "weights.txt"
_FOLDERS = itertools.count()


@dataclass(frozen=True)
class Toy:
    """A recipe without a network."""

    name = "toy"
    metrics = (VAL_LOSS,)
    contrastive = False

    def settings(self) -> dict[str, Any]:
        return {"recipe": self.name}


def first_weights(spec: RunSpec) -> str:
    """Of a run's settings."""
    return _digest(repr(sorted(spec.settings().items(), key=str)))


def trained(weights: str, rows: list[str]) -> str:
    """After a step over these records."""
    return _digest(weights + "".join(rows))


def loss(weights: str) -> float:
    return int(weights[:8], 16) / 2**32


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Leave(Exception):  # noqa: N818
    """The worker was told to save a checkpoint and end."""


class Worker:
    """One run of `raymed.training.loop.Run`, in as few lines as show what lies in the storage, and when."""

    def __init__(self, world: World, spec: RunSpec, attempt: Attempt, scratch: Path, saved: dict[str, list[str]]) -> None:
        """
        Args:
            scratch: a real folder for what is on its way.
            saved: by run, the names of the checkpoints that were reported.
        """
        self._world, self._spec, self._attempt, self._scratch, self._saved = world, spec, attempt, scratch, saved

    def work(self) -> None:
        try:
            try:
                self._begin()
            except CommonError:
                raise
            except UserError as error:
                self._tell({FAILED: str(error), "mistake": 1.0})
                return
            self._train()
        except CommonError as error:
            self._tell({FAILED: str(error), COMMON: 1.0})
        except RunError as error:
            self._tell({FAILED: str(error)})
        except Leave:
            if self.progress.global_step > self._saved_step:
                self._checkpoint({"epoch": self.progress.epoch, "global_step": self.progress.global_step}, False)

    def _begin(self) -> None:
        spec, folder = self._spec, self._new_folder()
        if spec.folder.is_local:
            disk.make(Path(spec.folder.path))  # as Ray Train does, which writes no folder out
        self._prepared = self._reach(spec.reach_data)
        guard(self._prepared.index, spec.fold)
        self._ids = self._prepared.index["id"].to_pylist()
        newest = self._reach(lambda: self._fetch(folder))
        self.progress, self.weights = Progress(), first_weights(spec)
        name = newest.name if newest else ""
        self._passed_over = [each for each in checkpoint_names(spec.folder) if each > name]
        if newest:
            self.progress = Progress.read(newest)
            self.progress.check_origin(spec.origin(), f"{spec.folder.uri}/{name}")
            self._reach(lambda: keep(spec.folder, {name, self.progress.model} - {""}))
            self.weights = (newest / WEIGHTS).read_text()
        shutil.rmtree(folder)
        self._retention = Retention(spec.folder, False, name, self.progress.model, self._passed_over)
        self._course = Course(spec.train, spec.stop_after, self.progress)
        self._saved_step = self.progress.global_step
        self._total = spec.total_steps(self._prepared)

    def _fetch(self, folder: Path) -> Path | None:
        newest = fetch_newest(self._spec.folder, folder)
        require_there(self._spec.folder)
        return newest

    def _reach(self, action: Any) -> Any:
        return wait_for(action, self._spec.folder, self._spec.train.storage_minutes, lambda: None)

    def _train(self) -> None:
        progress = self.progress
        if progress.history:
            self._report(progress.history[-1])
            if not progress.sums and not self._course.is_finished and self._told_to_stop():
                return
        while not self._course.is_finished:
            self._epoch()
            self._leave_if_told()
            metrics: dict[str, Any] = {"val_loss": loss(self.weights)}
            train_loss = progress.sums["loss"]
            self._course.validated()
            better = progress.best.update(self._course.point, metrics, VAL_LOSS, 0.0)
            metrics |= {
                "train_loss": train_loss[0] / train_loss[1],
                "epoch": self._course.epoch,
                "best_val_loss": progress.best.value,
                "best_epoch": progress.best.epoch,
                "global_step": progress.global_step,
                "seconds": 1.0,
            }
            metrics["finished"] = float(self._course.is_finished)
            progress.history.append(metrics)
            self._checkpoint(metrics, better)
            if not metrics["finished"] and self._told_to_stop():
                return

    def _epoch(self) -> None:
        progress = self.progress
        plan = self._spec.plan(self._prepared, progress.epoch)
        self._course.pause(len(plan.batches))
        while progress.step < len(plan.batches):
            self._leave_if_told()
            self._world.sleep(STEP_SECONDS)
            self.weights = trained(self.weights, [self._ids[row] for pack in plan.batches[progress.step] for row in pack])
            total, count = progress.sums.get("loss", (0.0, 0.0))
            progress.sums["loss"] = total + loss(self.weights), count + 1
            progress.step, progress.global_step = progress.step + 1, progress.global_step + 1
            if self._course.checkpoint_is_due and progress.step < len(plan.batches):
                self._checkpoint({"epoch": progress.epoch, "global_step": progress.global_step}, False)

    def _leave_if_told(self) -> None:
        if self._attempt.leaving:
            raise Leave

    def _told_to_stop(self) -> bool:
        job, place = self._attempt.job, (self._spec.name, self._course.point)
        while place not in job.verdicts:
            if not job.driver.is_alive:
                raise Killed  # Ray's answer is that the search is gone, and nobody starts it again
            self._world.sleep(1.0)
            self._leave_if_told()
        return job.verdicts[place]

    def _report(self, metrics: dict[str, Any]) -> None:
        model = self.progress.model
        best = {MODEL: self._spec.folder.child(model).uri} if model else {}
        facts = {f"{DESCRIPTION}/{PASSED_OVER}": ", ".join(self._passed_over)} if self._passed_over else {}
        self._tell({**metrics, **best, **facts, STEPS: [], TOTAL_STEPS: self._total})

    def _tell(self, report: dict[str, Any]) -> None:
        self._world.touch("report", self._spec.name)
        self._attempt.tell(report)

    def _checkpoint(self, metrics: dict[str, Any], better: bool) -> None:
        self.progress.saved += 1
        name = new_name(self.progress.global_step, self.progress.saved)
        folder, spec = self._new_folder(), self._spec
        (folder / WEIGHTS).write_text(self.weights)
        (folder / "model").mkdir()
        (folder / "model" / WEIGHTS).write_text(self.weights)
        (folder / "model" / RECIPE_FILE).write_text("{}")
        seal_model(folder / "model")
        if better:
            self.progress.model = name
        self.progress.workers, self.progress.origin = 1, spec.origin()
        self.progress.write(folder)
        seal(folder, 0, 1)
        try:
            self._reach(lambda: upload(folder, spec.folder, name))
        except StorageError:
            with contextlib.suppress(OSError):
                spec.folder.delete(name)
            raise
        shutil.rmtree(folder)
        self._saved_step = self.progress.global_step
        self._saved.setdefault(spec.folder.uri, []).append(name)
        self._retention.add(name, self.progress.model)
        self._report({**metrics, SAVED: name})

    def _new_folder(self) -> Path:
        folder = self._scratch / str(next(_FOLDERS))
        folder.mkdir()
        return folder
