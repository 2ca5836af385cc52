"""Mistakes put into the product, each of which the simulated nights must find."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray_model
import simulated_night
import worker_model
from mlflow_model import Client
from pytest import MonkeyPatch

from raymed import clock
from raymed.data.prepared import Prepared
from raymed.storage import disk, heartbeat, holder, lease
from raymed.storage.folder import Folder
from raymed.tracking import outbox, tracker
from raymed.tracking.metric_history import MetricHistory
from raymed.training import checkpoint, retention, upload
from raymed.training.loop import MODEL
from raymed.tuning import journal, recorder, search, study, trial_epochs
from raymed.tuning.recorder import Recorder

Mistake = Callable[[MonkeyPatch], None]


def _without_keep(module: Any, patch: MonkeyPatch, spare: Callable[[Path], bool] = lambda path: False) -> None:
    """A module that writes no file out, but for some."""
    functions = {
        name: getattr(disk, name)
        for name in ("exists", "read", "size", "write", "append", "copy", "rename", "remove", "make")
    }
    patch.setattr(module, "disk", SimpleNamespace(**functions, keep=lambda path: disk.keep(path) if spare(path) else None))


def record_is_not_written_out(patch: MonkeyPatch) -> None:
    _without_keep(journal, patch)


def checkpoint_is_not_written_out(patch: MonkeyPatch) -> None:
    _without_keep(upload, patch)


def names_of_a_checkpoint_are_not_written_out(patch: MonkeyPatch) -> None:
    _without_keep(upload, patch, lambda path: "." in path.name)  # files only


def own_name_of_a_run_is_not_written_out(patch: MonkeyPatch) -> None:
    """As it was until a simulated night found it."""
    _without_keep(upload, patch, lambda path: path.name != "trials")


def outbox_is_not_written_out(patch: MonkeyPatch) -> None:
    """And what MLflow lacks is not looked for at the start."""
    _without_keep(outbox, patch)
    patch.setattr(Recorder, "_catch_up", lambda *_: None)


def other_claims_are_not_looked_at(patch: MonkeyPatch) -> None:
    patch.setattr(lease._Claim, "_claims_of_others", lambda *_: [])


def run_is_created_without_a_look(patch: MonkeyPatch) -> None:
    """Tried again without its key."""

    def only(self: tracker.Tracker, key: str, tags: Any) -> str | None:
        runs = self._with_key(key)
        return runs[-1].info.run_id if runs else None

    patch.setattr(tracker.Tracker, "_only", only)


def epoch_is_written_again_at_another_time(patch: MonkeyPatch) -> None:
    """As a retry after half an answer did, when MLflow was asked what it had only once."""
    real = MetricHistory.log_validation

    def log(self: MetricHistory, run: str, epoch: int, metrics: Any, at: int | None = None, counted: str = "epoch") -> None:
        self._validations.setdefault(run, set())
        real(self, run, epoch, metrics, None, counted)

    patch.setattr(MetricHistory, "log_validation", log)


def epochs_of_the_outbox_are_all_there_are(patch: MonkeyPatch) -> None:
    """What a database that was set back had lost of a trial under way stayed lost; a simulated night found it."""
    patch.setattr(recorder, "curve", lambda trial: {})


def entry_is_delivered_before_it_is_written(patch: MonkeyPatch) -> None:
    """What is acknowledged first is lost when the process dies, and the start looks for nothing."""

    def step(self: outbox.Outbox) -> float | None:
        with self._lock:
            if self._waiting:
                entry, end = self._waiting.popleft()
                self._note_delivered(end)
            else:
                return None if self._closing else outbox.UNTIL_WOKEN
        try:
            self._deliver(entry)
        except Exception as error:
            return self._later(error)
        return 0.0

    patch.setattr(outbox.Outbox, "_step", step)
    patch.setattr(Recorder, "_catch_up", lambda *_: None)


def torn_checkpoint_is_taken(patch: MonkeyPatch) -> None:
    _without_keep(upload, patch)
    patch.setattr("simulated_night.Night._require_whole", lambda _: None)  # by what becomes of it, then
    patch.setattr(checkpoint, "verify", lambda _: None)


def decision_is_made_anew(patch: MonkeyPatch) -> None:
    patch.setattr(study.Study, "decided", lambda *_: None)
    patch.setattr(study.Study, "_decided_to_stop", lambda self, trial, epoch: self._trial(trial.number).should_prune())


def data_are_opened_whatever_they_hold(patch: MonkeyPatch) -> None:
    real = Prepared.open.__func__  # type: ignore[attr-defined]
    patch.setattr(Prepared, "open", classmethod(lambda cls, uri, digest="": real(cls, uri)))


def what_was_searched_is_not_noted(patch: MonkeyPatch) -> None:
    patch.setattr(study.Study, "enter", lambda *_: None)


def epoch_is_recorded_before_its_loss(patch: MonkeyPatch) -> None:
    """Two writes of the record, swapped, each by itself."""

    def report(self: study.Study, number: int, epoch: int, result: Any) -> bool:
        trial = self._trial(number)
        if epoch in self.trial(number).intermediate_values:
            return self._decided_to_stop(self.trial(number), epoch)
        trial.report(float(result[f"best_{self.objective.name}"]), epoch)
        trial.set_user_attr(f"{trial_epochs.CURVE}/{epoch}", float(result[self.objective.name]))
        self.locate(number, result)
        return trial.should_prune()

    patch.setattr(study.Study, "report", report)
    patch.setattr(study.Study, "together", lambda _: nullcontext())


def person_has_no_say(patch: MonkeyPatch) -> None:
    """The alias goes to the winner, whoever has moved it meanwhile."""
    real = simulated_night.give_alias
    patch.setattr(
        simulated_night,
        "give_alias",
        lambda tracker, winner, name, number, given, seen: real(tracker, winner, name, number, given),
    )


def checkpoint_is_recorded_before_its_epoch(patch: MonkeyPatch) -> None:
    """Where it was the only one that was compared, a kill between the two lost the epoch; a simulated night found it."""

    def locate(self: study.Study, number: int, result: Any) -> None:
        trial = self.trial(number)
        if MODEL in result and result[MODEL] != trial.user_attrs.get(study.CHECKPOINT) and not trial.state.is_finished():
            self._trial(number).set_user_attr(study.CHECKPOINT, result[MODEL])
            self._trial(number).set_user_attr(study.BEST_POINT, int(result[f"best_{self.counted}"]))

    patch.setattr(study.Study, "locate", locate)


def debris_stays(patch: MonkeyPatch) -> None:
    """Only what this process has written is removed."""

    def add(self: retention.Retention, name: str, model: str) -> None:
        before = {kept for pair in self._newest for kept in pair}
        self._newest = [*self._newest, (name, model)][-retention.NEWEST :]
        for other in before - {kept for pair in self._newest for kept in pair} - {""}:
            self._run.delete(other)

    patch.setattr(retention.Retention, "add", add)
    patch.setattr(search, "sweep", lambda run, models: None)


def checkpoint_to_go_on_from_is_not_written_out(patch: MonkeyPatch) -> None:
    """As it was until a simulated night found it: who copied it was killed before it was durable."""
    patch.setattr(worker_model, "keep", lambda run, names: None)


def refused_upload_is_taken_for_done(patch: MonkeyPatch) -> None:
    """As Arrow's `copy_files` does, by which checkpoints travelled until simulated nights found it."""
    real = Folder.send

    def send(self: Folder, name: str, content: Any) -> None:
        with suppress(OSError):
            real(self, name, content)

    patch.setattr(Folder, "send", send)


def age_of_a_claim_is_told_by_clocks(patch: MonkeyPatch) -> None:
    """Each machine by its own, and not by the storage's."""
    myself = holder.myself  # that of the simulated world
    patch.setattr(holder, "myself", lambda: myself() | {"at": clock.now()})
    patch.setattr(heartbeat, "has_stopped", lambda said, age: clock.now() - said.get("at", 0.0) > heartbeat.EXPIRES)


def twin_of_a_version_stays(patch: MonkeyPatch) -> None:
    """As where MLflow's client had repeated the creation, until simulated nights did so."""
    patch.setattr(Client, "delete_model_version", lambda *_: None)


def storage_that_is_away_is_made_anew(patch: MonkeyPatch) -> None:
    """Below its mount point, as it was until a night's mount point stayed."""
    patch.setattr("raymed.storage.folder.require_mounted", lambda path: None)


def decisions_are_not_told_again(patch: MonkeyPatch) -> None:
    """The process that tells runs whether to stop is started again, and knows nothing."""
    patch.setattr(ray_model, "_decisions", lambda *_: ())


MISTAKES: dict[Mistake, int] = {
    record_is_not_written_out: 22,
    checkpoint_is_not_written_out: 2,
    names_of_a_checkpoint_are_not_written_out: 12,
    own_name_of_a_run_is_not_written_out: 4,
    outbox_is_not_written_out: 22,
    other_claims_are_not_looked_at: 1,
    run_is_created_without_a_look: 6,
    epoch_is_written_again_at_another_time: 1,
    epochs_of_the_outbox_are_all_there_are: 62,
    entry_is_delivered_before_it_is_written: 18,
    torn_checkpoint_is_taken: 2,
    decision_is_made_anew: 30740,
    data_are_opened_whatever_they_hold: 30000,
    what_was_searched_is_not_noted: 0,
    epoch_is_recorded_before_its_loss: 23,
    checkpoint_is_recorded_before_its_epoch: 451,
    debris_stays: 22,
    person_has_no_say: 42,
    checkpoint_to_go_on_from_is_not_written_out: 911,
    decisions_are_not_told_again: 30761,
    refused_upload_is_taken_for_done: 30306,
    age_of_a_claim_is_told_by_clocks: 30138,
    twin_of_a_version_stays: 30087,
    storage_that_is_away_is_made_anew: 126,
}
"""Each with the seed of a night that finds it."""
