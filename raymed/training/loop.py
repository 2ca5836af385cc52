"""What one worker does: walk the plan, step, judge, checkpoint, report.

The same for every recipe. A run's losses are a function of its `RunSpec` alone: the order comes from the plan, the draws
from (seed, epoch, record) and (seed, step, place), and a resumed run goes on at the step its checkpoint names.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch.distributed as dist
from ray.actor import ActorHandle

from raymed.data.leak import guard
from raymed.data.micro_batches import MicroBatch
from raymed.data.plan import EpochPlan, repeat_counts
from raymed.data.prepared import Prepared
from raymed.data.stream import ShardReader, ahead
from raymed.errors import CommonError, RunError, UserError
from raymed.recipes.recipe import Batch, Predictions, TrainingPass, probe_of
from raymed.storage.availability import second_look
from raymed.storage.folder import Folder
from raymed.training.agreement import Agreement
from raymed.training.best import Best
from raymed.training.checkpoint import Checkpoints, Progress, fetch, find_newest, step_of
from raymed.training.course import Course
from raymed.training.engine import Engine, division
from raymed.training.frozen import Source
from raymed.training.means import means
from raymed.training.memory_plan import settled
from raymed.training.network import check_pretrained
from raymed.training.preemption import Leave, Notice, Notices, Preempted
from raymed.training.process import prepare_process
from raymed.training.retention import Retention, scratch
from raymed.training.saving import Saving
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.staging import check_room, staging_bytes
from raymed.training.stall import StallGuard
from raymed.training.step_log import STEPS, TOTAL_STEPS, StepLog
from raymed.training.stop_decisions import wait_for_verdict
from raymed.training.upload import keep
from raymed.training.validation import judge_rows
from raymed.training.worker_context import WorkerContext
from raymed.training.zero import own_disk

PASSED_OVER = "passed_over"  # the fact that names checkpoints which were not whole when the run went on
FROZEN = "frozen_part"  # the fact that says how often what a frozen part makes of rows is computed
DESCRIPTION = "description"  # facts about the run, among what a worker reports
MODEL = "model"  # URI of the checkpoint that holds the best model so far
SAVED = "saved"  # name of the checkpoint that was written
HISTORY = "history"  # of a run that goes on: the metrics of each validation before the one that it tells of
FAILED = "failed"  # why a run ends before its time
CAUSE = "cause"  # of that, as Python tells it
COMMON = "common"  # beside that: all runs of a search would meet it, see `CommonError`


def train(context: WorkerContext, spec: RunSpec, source: Source, stop_decisions: ActorHandle | None, keep_all: bool) -> None:
    """One worker's side of a run, from its newest checkpoint to its end. What ends it before its time is reported.

    Args:
        source: of the run's rows.
        keep_all: keep all checkpoints, not only the best and the two newest.

    Raises:
        Preempted: this worker's machine, or another's, is being taken away; a checkpoint is saved.
    """
    prepare_process(context.device)
    try:
        with contextlib.ExitStack() as disk:
            try:
                spec = settled(context, spec, partial(_tell, stop_decisions))
                settings = disk.enter_context(own_disk(spec.train))
                run = Run(context, spec, settings, source, stop_decisions, keep_all)
            except CommonError:
                raise
            except UserError as error:  # weights that do not fit, a leak: all workers meet it
                context.report(_failure(error) | {"mistake": 1.0})
                return
            run.train()
    except CommonError as error:
        context.report(_failure(error) | {COMMON: 1.0})
    except RunError as error:  # all workers meet it at the same place, and trying again would only repeat it
        context.report(_failure(error))


def _failure(error: Exception) -> dict[str, Any]:
    return {FAILED: str(error), CAUSE: "".join(traceback.format_exception(error))}


def _tell(stop_decisions: ActorHandle | None, text: str) -> None:
    """Say something to the job."""
    if stop_decisions is not None:
        stop_decisions.tell.remote(text)


class Run:
    """One worker's side of a training run."""

    def __init__(
        self,
        context: WorkerContext,
        spec: RunSpec,
        settings: TrainSettings,
        source: Source,
        stop_decisions: ActorHandle | None,
        keep_all: bool,
    ) -> None:
        self.context, self.worker, self.workers = context, context.rank, context.workers
        self.spec, self.stop_decisions, self.keep_all = spec, stop_decisions, keep_all
        self.tell = partial(_tell, stop_decisions)
        self.prepared = self._reach(spec.data, spec.reach_data)
        if not spec.is_refit:
            guard(self.prepared.index, spec.fold)
        check_pretrained(spec, context.local_rank == 0)
        self.validation = spec.rows(self.prepared, "val")  # none where all were to be trained on
        self.probe = probe_of(spec.recipe)
        if (probe := self.probe) is not None:
            self.probed = self._reach(probe.data, partial(Prepared.reach, probe.data, probe.digest))
        self.total_steps = spec.total_steps(self.prepared)
        self.engine = Engine(spec.recipe, settings, self.total_steps, spec.seed, context.device, spec.start)
        for workers in (spec.min_workers or self.workers, self.workers):
            self.division = division(spec.recipe, self.engine.module, spec.train, workers)
        self.stall = StallGuard(spec.train.stall_minutes, spec.folder, self.worker)
        try:
            self._take_up(source)
        except BaseException:
            self.stall.close()  # it would end the process's next run
            raise

    def _reach(self, data: str, opened: Callable[[], Prepared]) -> Prepared:
        """Open prepared data. A storage that is away is waited for."""
        return Agreement.early(Folder.at(data), self.spec.train, self.tell).reach(opened)

    def _take_up(self, source: Source) -> None:
        """Go on from the newest checkpoint, if there is one."""
        context, spec, stop_decisions = self.context, self.spec, self.stop_decisions
        self.agreement = Agreement(spec.folder, spec.train.storage_minutes, self.stall, self.tell)
        share = context.local_workers / self.workers
        self.agreement.reach(lambda: check_room(staging_bytes(self.engine.module, share, self.worker == 0)))
        self.progress = self._resume()
        self.readers = self.engine.readers(source)
        self.course = Course(spec.train, spec.stop_after, self.progress)
        self.saved_step = self.progress.global_step
        self.saving = Saving(self.engine, spec.folder, self.agreement)
        self.notices, self.step_log = Notices(stop_decisions, context.is_preempted), StepLog()
        self.stall.step()

    def train(self) -> None:
        """Train to the end, or until the search, the job or the machine's owner says to stop.

        Raises:
            Preempted: this worker's machine, or another's, is being taken away; a checkpoint is saved.
        """
        try:
            self._train_and_validate()
        except Leave as leave:
            if self.saving.is_under_way:  # steps since it was begun take less time than to write another one
                self._complete_checkpoint()
            elif self.progress.global_step > self.saved_step:
                self._checkpoint_between_validations(usable=False)  # there are two minutes, and large networks fill them
                self.saving.add_network(self._complete_checkpoint())
            if leave.notice == Notice.MACHINE:
                raise Preempted(f"told to leave after step {self.saved_step}") from None
        finally:
            self.saving.abandon()
            self.stall.close()

    def _leave_if_told(self) -> None:
        """Raise `Leave` on all workers if any of them has been told to; between two steps, or two micro-batches judged."""
        self.stall.step()
        notice = self.engine.greatest(self.notices.newest())
        if notice:
            raise Leave(Notice(notice))

    def _train_and_validate(self) -> None:
        progress, settings = self.progress, self.spec.train
        if progress.history:  # the search may have been lost before it knew of a validation, or had decided
            self._report({**progress.history[-1], HISTORY: progress.history[:-1]})
            if not progress.sums and not self.course.is_finished and self._told_to_stop():
                return
        while not self.course.is_finished:
            trained = self._train()
            name = self._begin_checkpoint()  # the state stays as it is during the validation
            self.saving.note(progress)  # for a run that is told to leave in the middle of it
            metrics, predictions = self._validate()
            self.course.validated()
            if not math.isfinite(metrics.get("val_loss", 0.0)):
                raise RunError(f"the val_loss of {settings.noun} {self.course.point} is not finite: lower train.lr")
            if self.spec.is_refit:
                progress.best = Best()
            metrics["global_step"] = progress.global_step
            better = progress.best.update(
                self.course.point, metrics, self.spec.monitor, settings.min_delta, self.spec.watched
            )
            assert progress.best.value is not None  # there was an epoch
            metrics |= trained | {
                "epoch": self.course.epoch,
                f"best_{settings.monitor}": progress.best.value,
                f"best_{settings.counted}": progress.best.epoch,
            }
            if "val_loss" in metrics:
                metrics["best_val_loss"] = min(each["val_loss"] for each in [*progress.history, metrics])
            metrics["finished"] = float(self.course.is_finished)
            progress.history.append(metrics)
            if better:
                progress.model = name
            self.saving.note(progress, predictions)
            self._complete_checkpoint(metrics)
            if not metrics["finished"] and self._told_to_stop():
                return

    def _told_to_stop(self) -> bool:
        self.agreement.may_wait()  # the search decides once its record is written
        if self.stop_decisions is None:
            return False
        told = [self.worker == 0 and wait_for_verdict(self.stop_decisions, self.spec.name, self.course.point)]
        dist.broadcast_object_list(told)
        return told[0]

    def _train(self) -> dict[str, float]:
        """Train to the next validation; metrics of all steps since the last one, but the times, which are of this part."""
        progress = self.progress
        self.step_log.begin()
        while True:
            plan = self.spec.plan(self.prepared, progress.epoch)
            self._train_on(replace(plan, batches=plan.batches[: self.course.pause(len(plan.batches))]))
            if self.course.validation_is_due:
                break
            self.course.next_epoch()
        filler, efficiency = self.division.balance(plan.batches)
        return {f"train_{name}": mean for name, mean in means(progress.sums).items()} | {
            "lr": self.engine.lr,
            "gradient_norm": self.engine.gradient_norm,
            **self.step_log.end(),
            "filler": filler,
            "worker_efficiency": efficiency,
            **({} if plan.fill_rate is None else {"fill_rate": plan.fill_rate}),
        }

    def _train_on(self, plan: EpochPlan) -> None:
        """The steps of a plan that are left of it."""
        progress = self.progress
        batches = ahead(self._training_batches(plan, progress.epoch, progress.step))
        while True:
            self.stall.step()
            shares = self.step_log.waiting(batches)
            if shares is None:
                break
            own = self.notices.newest()
            told = [own >= Notice.MACHINE, own >= Notice.JOB, self.saving.is_written]
            *noticed, written = self.engine.step(shares, progress.global_step, told)
            self.step_log.add(sum(len(pack) for pack in plan.batches[progress.step]))
            progress.step += 1
            progress.global_step += 1
            if notice := sum(map(bool, noticed)):
                raise Leave(Notice(notice))
            if self.saving.is_under_way and written == self.workers:
                self._complete_checkpoint()
            if self.course.checkpoint_is_due and progress.step < len(plan.batches):
                self._checkpoint_between_validations()
            elif progress.global_step % self.spec.train.log_steps == 0:
                self._read_steps()
                if self.engine.greatest(int(self.worker == 0 and self.step_log.is_due)):
                    self._report({"global_step": progress.global_step})
        self._read_steps()

    def _read_steps(self) -> None:
        """Take in what the steps since the last call computed; here a device is waited for."""
        figures = self.engine.read()
        for step in figures:
            for name, (total, count) in step.sums.items():
                before = self.progress.sums.get(name, (0.0, 0.0))
                self.progress.sums[name] = (before[0] + total, before[1] + count)
        if self.worker == 0:
            self.progress.steps += self.step_log.rows(figures)

    def _training_batches(self, plan: EpochPlan, epoch: int, first_step: int) -> Iterator[list[tuple[Batch, MicroBatch]]]:
        """This worker's encoded micro-batches of each global batch from `first_step` on."""
        shares, shown = (
            [self.division.share(batch, self.worker) for batch in batches]
            for batches in (plan.batches[first_step:], repeat_counts(plan.batches)[first_step:])
        )
        records = self.readers.training.read(
            [[row for pack in micro.packs for row in pack] for step in shares for micro in step]
        )
        for step in shown:
            counts = ((tuple(count for pack in micro.packs for count in pack), micro) for micro in step)
            passes = [(TrainingPass(self.spec.seed, epoch, repeats), micro) for repeats, micro in counts]
            encoded = ((self.spec.recipe.encode(next(records), where), micro) for where, micro in passes)
            yield [(self.engine.prepare(batch), micro) for batch, micro in encoded]

    def _validate(self) -> tuple[dict[str, float], Predictions | None]:
        """Metrics over every validation row, and those of the probe; and the predictions for the validation rows."""
        judge = partial(judge_rows, self.engine, self.spec.train.packs_at_once, self._leave_if_told)
        metrics: dict[str, float] = {}
        predictions: Predictions | None = None
        if len(self.validation):
            recipe, reader = self.spec.recipe, self.readers.validation
            metrics, predictions = judge(recipe, self.prepared, self.validation, reader)
        if self.probe is not None:
            rows = self.probe.rows(self.probed)
            metrics |= judge(self.probe, self.probed, rows, ShardReader(self.probed))[0]
        return metrics, predictions

    def _report(self, metrics: Mapping[str, Any]) -> None:
        """Tell the driver of metrics and of the steps since the last time, with facts about the run and its best model."""
        model = self.progress.model
        best = {MODEL: self.spec.folder.child(model).uri} if model else {}
        facts = self.engine.description | ({FROZEN: self.readers.fact} if self.readers.fact else {})
        facts |= {PASSED_OVER: ", ".join(self.passed_over)} if self.passed_over else {}
        steps, self.progress.steps = self.progress.steps, []
        self.context.report({**metrics, **best, DESCRIPTION: facts, STEPS: steps, TOTAL_STEPS: self.total_steps})
        self.step_log.told()

    def _checkpoint_between_validations(self, usable: bool = True) -> None:
        self._read_steps()
        self._begin_checkpoint(usable)
        self.saving.note(self.progress)

    def _begin_checkpoint(self, usable: bool = True) -> str:
        """Save the state as it is, while the run goes on; the name of the checkpoint.

        Args:
            usable: see `Saving`.
        """
        if self.saving.is_under_way:
            self._complete_checkpoint()
        progress = self.progress
        progress.saved, progress.workers, progress.origin = progress.saved + 1, self.workers, self.spec.origin()
        return self.saving.begin(progress.global_step, progress.saved, usable)

    def _complete_checkpoint(self, metrics: Mapping[str, Any] | None = None) -> str:
        """Make a checkpoint of what was saved, then report; its name.

        Args:
            metrics: of the validation that it belongs to; one between two tells where the run stands by now.
        """
        name = self.saving.complete()
        self.saved_step = step_of(name)
        if self.worker == 0:
            self.retention.add(name, self.progress.model)
        stands = {"epoch": self.progress.epoch, "global_step": self.progress.global_step}
        self._report({**(stands if metrics is None else metrics), SAVED: name})
        return name

    def _resume(self) -> Progress:
        """Go on from the newest whole checkpoint. Worker 0 chooses it, so that no worker goes on from another."""
        run = self.spec.folder
        with scratch(run, self.worker) as folder:
            looked = [self.agreement.reach(lambda: find_newest(run, folder) if self.worker == 0 else Checkpoints())]
            dist.broadcast_object_list(looked)
            found, progress = looked[0], Progress()
            self.passed_over = found.torn
            if found.newest:
                name, whole = found.newest, folder / found.newest
                copied = partial(fetch, run, name, folder)
                self.agreement.reach(lambda: whole if self.worker == 0 else second_look(copied, run))
                progress = Progress.read(whole)
                progress.check_origin(self.spec.origin(), f"{run.uri}/{name}", self.spec.pretrained)
                # who copied them may have been killed before they were written out
                self.agreement.reach(lambda: keep(run, {name, progress.model} - {""}))
                self.engine.load(whole)
        self.retention = Retention(run, self.keep_all, found, progress.model)
        return progress
