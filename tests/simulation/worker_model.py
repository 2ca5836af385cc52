"""A worker whose state is a digest of all that it was trained on: two runs are the same where their digests are.

It goes on, saves and reports in the order that the product's loop does, with the product's own checkpoints, retention and
uploads; only the network is missing. The state of a checkpoint is copied at one step, and a thread writes it while others
follow. Here it does so as a whole, in one of the pauses until the run comes back to it: what a thread and its run do at the
same moment is not tried, and a kill, or a power cut, may fall into each write and between any two.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from machines import Killed, World
from ray_model import Attempt

from raymed.data.leak import guard
from raymed.errors import CommonError, RunError, StorageError, UserError
from raymed.recipes.exported import RECIPE_FILE
from raymed.recipes.metric import VAL_LOSS
from raymed.storage import disk
from raymed.storage.availability import is_denial, is_refusal, wait_for
from raymed.storage.seal import seal as seal_model
from raymed.training.checkpoint import Progress, digests, find_newest, new_name, seal, step_of
from raymed.training.course import Course
from raymed.training.loop import COMMON, DESCRIPTION, FAILED, HISTORY, MODEL, PASSED_OVER, SAVED
from raymed.training.means import LOSS
from raymed.training.retention import Retention
from raymed.training.saving import REST, STATE
from raymed.training.spec import RunSpec
from raymed.training.step_log import STEPS, TOTAL_STEPS
from raymed.training.upload import keep, upload

STEP_SECONDS = 20.0
WRITTEN = 0.5  # of the pauses in which a checkpoint's state may be written, those in which it is
WEIGHTS = "weights.txt"
SUM = f"{LOSS}/loss"  # what is logged of a step
_FOLDERS = itertools.count()

Result = TypeVar("Result")


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


@dataclass
class UnderWay:
    """A checkpoint that is under way, as one of `raymed.training.saving`.

    Attributes:
        listed: the digests of its state once it is written, or was refused.
        refusal: why.
    """

    name: str
    folder: Path
    listed: dict[str, str] | None = None
    refusal: StorageError | None = None


class Worker:
    """One run of `raymed.training.loop.Run`, in as few lines as show what lies in the storage, and when."""

    def __init__(self, world: World, spec: RunSpec, attempt: Attempt, scratch: Path, saved: dict[str, list[str]]) -> None:
        """
        Args:
            scratch: a real folder for what is on its way.
            saved: by run, the names of the checkpoints that were reported to the search that goes on.
        """
        self._world, self._spec, self._attempt, self._scratch, self._saved = world, spec, attempt, scratch, saved
        self._under_way: UnderWay | None = None

    def work(self) -> None:
        try:
            try:
                self._begin()
            except CommonError:
                raise
            except UserError as error:
                self._tell({FAILED: str(error), "mistake": 1.0})
                return
            self._train_or_leave()
        except CommonError as error:
            self._tell({FAILED: str(error), COMMON: 1.0})
        except RunError as error:
            self._tell({FAILED: str(error)})
        except OSError as error:
            if not is_refusal(error) or is_denial(error):
                raise
            self._tell({FAILED: str(StorageError.of(error)), COMMON: 1.0})

    def _train_or_leave(self) -> None:
        try:
            try:
                self._train()
            except Leave:
                if self._under_way:
                    self._complete_checkpoint()
                elif self.progress.global_step > self._saved_step:
                    self._checkpoint_between_validations(usable=False)
                    self._complete_checkpoint()
        except Exception:  # a process that was killed does nothing any more
            self._abandon()
            raise

    def _begin(self) -> None:
        spec, folder = self._spec, self._new_folder()
        if spec.folder.is_local:
            disk.make(Path(spec.folder.path))  # as Ray Train does, which writes no folder out
        self._prepared = self._reach(spec.reach_data)
        guard(self._prepared.index, spec.fold)
        self._ids = self._prepared.index["id"].to_pylist()
        reported = self._saved.get(spec.folder.uri, [""])[-1]
        found = self._reach(lambda: find_newest(spec.folder, folder))
        self.progress, self.weights = Progress(), first_weights(spec)
        self._passed_over, name = found.torn, found.newest
        assert name >= reported, f"a run goes on from before {reported}, which was reported"
        if name:
            self.progress = Progress.read(folder / name)
            self.progress.check_origin(spec.origin(), f"{spec.folder.uri}/{name}")
            self._reach(lambda: keep(spec.folder, {name, self.progress.model} - {""}))
            if name not in (names := self._saved.setdefault(spec.folder.uri, [])):
                names.append(name)  # its writer was killed between the last file and the report
            self.weights = (folder / name / WEIGHTS).read_text()
        shutil.rmtree(folder)
        self._retention = Retention(spec.folder, False, found, self.progress.model)
        self._course = Course(spec.train, spec.stop_after, self.progress)
        self._saved_step = self.progress.global_step
        self._total = spec.total_steps(self._prepared)

    def _reach(self, action: Callable[[], Result]) -> Result:
        return wait_for(action, self._spec.folder, self._spec.train.storage_minutes)

    def _train(self) -> None:
        progress = self.progress
        if progress.history:
            self._report({**progress.history[-1], HISTORY: progress.history[:-1]})
            if not progress.sums and not self._course.is_finished and self._told_to_stop():
                return
        while not self._course.is_finished:
            self._epoch()
            name = self._begin_checkpoint()
            self._note()
            self._pause(STEP_SECONDS)  # the validation
            self._leave_if_told()
            metrics: dict[str, Any] = {"val_loss": loss(self.weights)}
            train_loss = progress.sums[SUM]
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
            if better:
                progress.model = name
            self._note()
            self._complete_checkpoint(metrics)
            if not metrics["finished"] and self._told_to_stop():
                return

    def _epoch(self) -> None:
        progress = self.progress
        plan = self._spec.plan(self._prepared, progress.epoch)
        self._course.pause(len(plan.batches))
        while progress.step < len(plan.batches):
            self._pause(STEP_SECONDS)
            self.weights = trained(self.weights, [self._ids[row] for pack in plan.batches[progress.step] for row in pack])
            total, count = progress.sums.get(SUM, (0.0, 0.0))
            progress.sums[SUM] = total + loss(self.weights), count + 1
            progress.step, progress.global_step = progress.step + 1, progress.global_step + 1
            self._leave_if_told()
            if self._under_way and self._under_way.listed is not None:
                self._complete_checkpoint()
            if self._course.checkpoint_is_due and progress.step < len(plan.batches):
                self._checkpoint_between_validations()

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

    # a checkpoint, as in `raymed.training.loop` and `raymed.training.saving`

    def _checkpoint_between_validations(self, usable: bool = True) -> None:
        self._begin_checkpoint(usable)
        self._note()

    def _begin_checkpoint(self, usable: bool = True) -> str:
        if self._under_way:
            self._complete_checkpoint()
        progress, folder = self.progress, self._new_folder()
        progress.saved, progress.workers, progress.origin = progress.saved + 1, 1, self._spec.origin()
        state = folder / STATE
        for each in (state, folder / REST):
            each.mkdir()
        (state / WEIGHTS).write_text(self.weights)
        if usable:
            model = state / "model"
            model.mkdir()
            (model / RECIPE_FILE).write_text(self.weights)
            seal_model(model)
        self._under_way = UnderWay(new_name(progress.global_step, progress.saved), folder)
        self._pause(0.0)
        return self._under_way.name

    def _note(self) -> None:
        assert self._under_way is not None
        self._world.require_room()
        self.progress.write(self._under_way.folder / REST)

    def _pause(self, seconds: float) -> None:
        """The run computes. What its thread has to do meanwhile it does, or does later."""
        self._world.sleep(seconds)
        if self._under_way and self._world.draw.random() < WRITTEN:
            self._write_state(self._under_way)

    def _write_state(self, checkpoint: UnderWay) -> None:
        """What the thread does, once."""
        if checkpoint.listed is not None:
            return
        state = checkpoint.folder / STATE
        try:
            self._world.require_room()
            self._reach(lambda: upload(state, self._spec.folder, checkpoint.name))
        except OSError as error:
            checkpoint.refusal = StorageError.of(error)
        except StorageError as error:
            checkpoint.refusal = error
        checkpoint.listed = digests(state)

    def _complete_checkpoint(self, metrics: dict[str, Any] | None = None) -> None:
        assert self._under_way is not None
        checkpoint, spec, progress = self._under_way, self._spec, self.progress
        self._write_state(checkpoint)
        self._under_way = None
        self._world.require_room()
        seal(checkpoint.folder / REST, 0, 1, checkpoint.listed)
        try:
            if checkpoint.refusal is not None:
                raise checkpoint.refusal
            self._reach(lambda: upload(checkpoint.folder / REST, spec.folder, checkpoint.name))
        except StorageError:
            with contextlib.suppress(OSError):
                spec.folder.delete(checkpoint.name)
            raise
        shutil.rmtree(checkpoint.folder)
        self._saved_step = step_of(checkpoint.name)
        if not self._attempt.job.is_outlived:  # the next search counts on none that it does not know of
            self._saved.setdefault(spec.folder.uri, []).append(checkpoint.name)
        self._retention.add(checkpoint.name, progress.model)
        stands = {"epoch": progress.epoch, "global_step": progress.global_step}
        self._report({**(stands if metrics is None else metrics), SAVED: checkpoint.name})

    def _abandon(self) -> None:
        if self._under_way is not None:
            with contextlib.suppress(OSError):
                self._spec.folder.delete(self._under_way.name)

    def _new_folder(self) -> Path:
        folder = self._scratch / str(next(_FOLDERS))
        folder.mkdir()
        return folder
