"""MLflow shows what the study holds, whatever was lost on the way."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import UNAUTHENTICATED
from optuna.trial import TrialState

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.toy.recipe import ToyRecipe
from raymed.tracking.names import quoted
from raymed.tracking.tracker import KEY, Tracker
from raymed.training.fit import Resources
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.training.start import StartWeights
from raymed.training.step_log import STEPS, TOTAL_STEPS
from raymed.tuning.budget import Budget
from raymed.tuning.journal import COPY
from raymed.tuning.progress import Progress
from raymed.tuning.recorder import Recorder
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import Study


@pytest.fixture
def search(prepared: Prepared, tmp_path: Path) -> Search:
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("search", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(epochs=2, lr=3e-3))
    settings = SearchSettings(space={"train.lr": Dimension(1e-4, 1e-2)})
    return Search(template, settings, Budget(trials=3), f"sqlite:///{tmp_path}/mlflow.db")


def open_recorder(search: Search, study: Study) -> tuple[Recorder, Tracker, str]:
    tracker = search.open_tracker()
    parent = tracker.run(search.name, search.name)
    progress = Progress(study, search.budget, search.label, search.spec_of)
    return Recorder(search, tracker, parent, study, progress, None, Resources(2, 2, 1, 0)), tracker, parent


def report(study: Study, number: int, epoch: int) -> dict[str, Any]:
    result = {"epoch": epoch, "val_loss": 0.5 / epoch, "best_val_loss": 0.5 / epoch, "seconds": 1.0}
    result |= {"best_epoch": epoch, "best_global_step": epoch}
    study.report(number, epoch, {**result, "model": f"/checkpoints/{epoch}"})
    return result | {"val_accuracy": 0.75}


def searched(search: Search) -> Study:
    """A trial whose end MLflow is told of, and one that is killed between the study's entry and the outbox's."""
    study = search.open_study()
    recorder, _, _ = open_recorder(search, study)
    for number in (0, 1):
        study.ask(search.budget)
        recorder.observe(number, "start", {})
        for epoch in (1, 2):
            recorder.observe(number, "epoch", report(study, number, epoch))
        study.tell(number, TrialState.COMPLETE)
        if number == 0:
            recorder.observe(number, "COMPLETE", {})
    recorder.close()
    return study


def shown(search: Search) -> dict[str, tuple[str, str | None, list[int]]]:
    """Of each trial's run its status, state and the steps of val_loss."""
    tracker = search.open_tracker()
    history = tracker.client.get_metric_history
    return {
        key: (
            run.status,
            run.tags.get("raymed.state"),
            sorted(m.step for m in history(run.id, "val_loss")),
        )
        for key, run in tracker.children(str(tracker.find(search.name))).items()
    }


def test_a_trial_that_begins_as_mlflow_catches_up_is_not_taken_for_the_first(search: Search) -> None:
    study = search.open_study()
    recorder, _, _ = open_recorder(search, study)
    study.ask(search.budget)
    recorder.observe(0, "epoch", report(study, 0, 1))
    study.tell(0, TrialState.COMPLETE)  # and killed before MLflow is told
    recorder.close()
    study.study.ask()  # in the study, without settings as yet
    again, _, _ = open_recorder(search, study)
    again._write({"happened": "begin", "finished": [0]})
    again.close()
    assert [state for _, state, _ in shown(search).values()] == ["COMPLETE"]


def test_an_interrupt_as_a_trial_begins_is_not_told_of_the_first(search: Search) -> None:
    first = ({"train.lr": 2e-4}, {"train.lr": 4e-4})
    search = dataclasses.replace(search, settings=dataclasses.replace(search.settings, first=first))
    study = search.open_study()
    recorder, _, _ = open_recorder(search, study)
    study.ask(search.budget)
    recorder.observe(0, "epoch", report(study, 0, 1))
    study.tell(0, TrialState.COMPLETE)
    recorder.observe(0, "COMPLETE", {})
    study.study.ask()  # in the study, without settings as yet
    recorder.interrupt()
    recorder.close()
    assert shown(search) == {"search/trial-0000": ("FINISHED", "COMPLETE", [1])}


def test_a_trial_that_a_lost_record_had_drawn_otherwise_gets_a_run_of_its_own(search: Search) -> None:
    """A new head goes on with a copy of the record that lacks what MLflow was told already."""
    study = search.open_study()
    before = search.study_path.read_bytes()
    for lr in (2e-3, 4e-3):
        study.enqueue({"train.lr": lr})
        study.ask(search.budget)
        study.ask(search.budget)
        recorder, tracker, _ = open_recorder(search, study)
        recorder.observe(1, "epoch", report(study, 1, 1))
        recorder.close()
        study.close()
        for file in (search.study_path, search.study_path.with_name(COPY)):
            file.write_bytes(before)
        study = search.open_study()
    runs = sorted(tracker.tagged(KEY, quoted("search/trial-0001")), key=lambda run: run.is_deleted)
    assert [(run.is_deleted, run.params["train.lr"]) for run in runs] == [(False, "0.004"), (True, "0.002")]


@pytest.mark.parametrize("happened", ["begin", "interrupt"])
def test_a_run_deleted_while_mlflow_catches_up_holds_up_no_other(
    search: Search, monkeypatch: pytest.MonkeyPatch, happened: str
) -> None:
    """Between the look for it and what is written of it."""
    study = searched(search)
    if happened == "interrupt":
        study = search.open_study()
        for _ in range(2):
            study.enqueue({"train.lr": 2e-3})
            study.ask(Budget(9))
    recorder, tracker, parent = open_recorder(search, study)
    recorder.close()
    deleted = recorder._run(2 if happened == "interrupt" else 0)
    for number in range(len(study.trials)):
        tracker.tags(recorder._run(number), {"raymed.state": ""})  # MLflow lacks their ends
    tracker.client.delete_run(deleted)
    with pytest.raises(Exception, match="must be in the 'active' state"):
        recorder._write({"happened": happened, "finished": [0, 1], "reason": "stopped"})
    said = {key: (run.status, run.tags["raymed.state"]) for key, run in tracker.children(parent).items()}
    if happened == "interrupt":
        assert said["search/trial-0003"] == ("KILLED", "") and tracker.describe(parent).status == "KILLED"
    else:
        assert said == {"search/trial-0001": ("FINISHED", "COMPLETE")}


def test_an_epoch_that_a_database_set_back_under_the_search_has_lost_is_there_at_the_end(
    search: Search, tmp_path: Path
) -> None:
    """The last one is there, by which a trial is taken for up to date, and the one before is known to have been written."""
    study = search.open_study()
    study.ask(search.budget)
    recorder, *_ = open_recorder(search, study)
    recorder._write({"happened": "begin"})
    recorder._write({"trial": 0, "happened": "start"})
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "copy.db")
    for epoch in (1, 2):
        metrics = {"val_loss": report(study, 0, epoch)["val_loss"]}
        recorder._write({"trial": 0, "happened": "epoch", "epoch": epoch, "metrics": metrics, "facts": {}})
        if epoch == 1:
            with (
                closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
                closing(sqlite3.connect(tmp_path / "mlflow.db")) as db,
            ):
                copy.backup(db)
    study.tell(0, TrialState.COMPLETE)
    recorder._write({"trial": 0, "happened": "COMPLETE", "reason": ""})
    recorder.close()
    assert shown(search) == {"search/trial-0000": ("FINISHED", "COMPLETE", [1, 2])}


def ended(search: Search, train: TrainSettings, steps: int) -> None:
    """A trial with these settings, of so many steps as the first epoch lets expect, ends after two validations."""
    search = dataclasses.replace(search, template=dataclasses.replace(search.template, train=train))
    study = search.open_study()
    recorder, _, _ = open_recorder(search, study)
    study.ask(search.budget)
    for epoch in (1, 2):
        at = {"global_step": 10 * epoch, TOTAL_STEPS: steps, "epoch": epoch}
        recorder.observe(0, "epoch", report(study, 0, 10 * epoch if train.validate_steps else epoch) | at)
    study.tell(0, TrialState.COMPLETE)
    recorder.observe(0, "COMPLETE", {})
    recorder.close()


def test_data_whose_storage_is_away_for_a_moment_hold_mlflow_up_and_end_nothing(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second as a trial began ended the whole search: "... is not prepared data"."""
    study, read, looks = search.open_study(), Folder.read, list[str]()

    def blink(folder: Folder, name: str) -> bytes:
        looks.append(name)
        if looks.count(name) == 1:
            raise FileNotFoundError(name)
        return read(folder, name)

    template = dataclasses.replace(search.template, data_digest=search.template.open_data().digest)
    search = dataclasses.replace(search, template=template)
    recorder, _, _ = open_recorder(search, study)
    study.ask(search.budget)
    monkeypatch.setattr(Folder, "read", blink)
    recorder.observe(0, "start", {})
    recorder.observe(0, "epoch", report(study, 0, 1))
    recorder.close()
    assert "manifest.json" in looks[0] and shown(search) == {"search/trial-0000": ("RUNNING", None, [1])}


def test_an_epoch_that_a_head_which_was_cut_off_still_writes_is_there_once(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request was on its way when it stood still, and arrives after its successor has written that epoch."""
    study, waiting = search.open_study(), list[dict[str, Any]]()
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_deliver", lambda self, entry: waiting.append(entry))
        patch.setattr("raymed.clock.now", lambda: 1_700_000_000.0)
        cut_off, tracker, parent = open_recorder(search, study)
        study.ask(search.budget)
        cut_off.observe(0, "epoch", report(study, 0, 1))
        study.tell(0, TrialState.COMPLETE)
        cut_off.close()
    successor, _, _ = open_recorder(search, study)
    successor.close()
    (run,) = tracker.children(parent).values()
    (epoch,) = (entry for entry in waiting if entry["happened"] == "epoch")
    tracker.history.write(run.id, epoch["metrics"], epoch["epoch"], epoch["at"])
    assert shown(search) == {"search/trial-0000": ("FINISHED", "COMPLETE", [1])}


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        ({"epochs": 50}, "early stopping after epoch 2 of 50, 1 epochs without a better val_loss"),
        ({"steps": 500}, "early stopping after step 20 of 500, 1 validations without a better val_loss"),
        ({"steps": 500, "validate_steps": 10}, "early stopping after step 20 of 500, 1 validations"),
    ],
)
def test_early_stopping_is_told_whatever_a_run_is_counted_in(
    search: Search, caplog: pytest.LogCaptureFixture, counted: dict[str, int], told: str
) -> None:
    with caplog.at_level("INFO", "raymed"):
        ended(search, TrainSettings(patience=1, **counted), 500)  # type: ignore[arg-type]
    assert told in caplog.text


def test_a_run_that_had_all_its_epochs_did_not_stop_early_whatever_its_packs_came_to(
    search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    """Packs are drawn anew each epoch, so steps are not as many as were reckoned from the first."""
    with caplog.at_level("INFO", "raymed"):
        ended(search, TrainSettings(patience=1, epochs=2), 21)
    assert "trial 0" in caplog.text and "early stopping" not in caplog.text


def test_an_end_that_was_lost_between_the_study_and_the_outbox_is_told_by_the_next_process(search: Search) -> None:
    searched(search)
    assert shown(search)["search/trial-0001"][:2] == ("RUNNING", None)
    recorder, *_ = open_recorder(search, search.open_study())
    recorder.close()
    ended = ("FINISHED", "COMPLETE", [1, 2])
    assert shown(search) == {"search/trial-0000": ended, "search/trial-0001": ended}


def test_each_run_says_which_slices_it_takes_where_these_are_searched(search: Search) -> None:
    space = {"slices.per_patient": Dimension(choices=(2, 16))}
    search = dataclasses.replace(search, settings=SearchSettings(space=space, first=({"slices.per_patient": 2},)))
    searched(search)
    runs = [search.open_tracker().describe(str(search.open_tracker().find(f"search/trial-000{n}"))) for n in (0, 1)]
    assert [run.params["slices.per_patient"] for run in runs] == ["16", "2"]


def test_what_a_restored_database_lacks_is_written_again_from_the_study(search: Search, tmp_path: Path) -> None:
    """All of MLflow is gone, and the outbox with it."""
    searched(search)
    search.outbox.unlink()
    search = dataclasses.replace(search, tracking_uri=f"sqlite:///{tmp_path}/empty.db")
    recorder, tracker, _ = open_recorder(search, search.open_study())
    recorder.close()
    ended = ("FINISHED", "COMPLETE", [1, 2])
    assert shown(search) == {"search/trial-0000": ended, "search/trial-0001": ended}
    run = tracker.describe(str(tracker.find("search/trial-0000")))
    assert run.tags["raymed.checkpoint"] == "/checkpoints/2", "so that it can be judged and registered"
    assert [run.params[f"how.{name}"] for name in ("workers", "threads", "micro_batch", "zero_stage")] == [
        "2",
        "1",
        "16",
        "1",
    ]


def test_a_run_that_is_up_to_date_is_not_written_again(search: Search) -> None:
    searched(search)
    for _ in range(2):
        recorder, tracker, _ = open_recorder(search, search.open_study())
        recorder.close()
    history = tracker.client.get_metric_history(str(tracker.find("search/trial-0000")), "val_accuracy")
    assert [metric.step for metric in history] == [1, 2]


def test_a_run_deleted_in_the_ui_holds_up_no_other(search: Search, caplog: pytest.LogCaptureFixture) -> None:
    study = search.open_study()
    recorder, tracker, _ = open_recorder(search, study)
    for number in (0, 1):
        study.ask(search.budget)
        recorder.observe(number, "epoch", report(study, number, 1))
    while tracker.find("search/trial-0001") is None:
        pass
    tracker.client.delete_run(str(tracker.find("search/trial-0000")))
    for number in (0, 1):
        recorder.observe(number, "epoch", report(study, number, 2))
    recorder.close()
    assert "refuses an entry for good" in caplog.text and search.outbox.read_bytes() == b""
    assert shown(search) == {"search/trial-0001": ("RUNNING", None, [1, 2])}


def test_a_token_that_runs_out_in_the_night_is_no_server_that_is_away(
    search: Search, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = search.open_study()
    recorder, tracker, _ = open_recorder(search, study)
    log_batch, denied = tracker.client.log_batch, list[str]()

    def refuses_once(*arguments: Any, **settings: Any) -> None:
        if not denied:
            denied.append("once")
            raise MlflowException("You are not authenticated", error_code=UNAUTHENTICATED)
        log_batch(*arguments, **settings)

    monkeypatch.setattr(tracker.client, "log_batch", refuses_once)
    study.ask(search.budget)
    recorder.observe(0, "epoch", report(study, 0, 1))
    recorder.close()
    assert "refuses the credentials (You are not authenticated)" in caplog.text and search.outbox.read_bytes() == b""
    assert shown(search) == {"search/trial-0000": ("RUNNING", None, [1])}


def test_steps_are_told_of_calmly_and_all_of_them_reach_mlflow(search: Search, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "raymed")
    study = search.open_study()
    recorder, tracker, _ = open_recorder(search, study)
    study.ask(search.budget)
    recorder.observe(0, "start", {})
    for last in (10, 20):
        rows = [
            {"global_step": step, "train_loss": 1.5, "lr": 2e-5, "records_per_second": 8.0, "seconds": 2.0}
            for step in range(last - 9, last + 1)
        ]
        recorder.observe(0, STEPS, {STEPS: rows, TOTAL_STEPS: 8000})
    recorder.close()
    assert [record.getMessage() for record in caplog.records if record.name == "raymed"] == [
        "trial 0  step 10/8000  loss 1.5000  lr 2.00e-05  8.0 samples/s  |  about 4:26 h left"
    ]
    run = tracker.find(search.trial_key(study.trial(0)))
    assert [metric.step for metric in tracker.client.get_metric_history(str(run), "step/lr")] == list(range(1, 21))


def test_a_search_whose_validations_are_counted_in_steps_halves_on_steps(search: Search) -> None:
    train = dataclasses.replace(search.template.train, validate_steps=50)
    study = dataclasses.replace(search, template=dataclasses.replace(search.template, train=train)).open_study()
    assert study.halving.first_rung == 50
    for number in range(3):
        study.ask(search.budget)
        result = {"val_loss": 1.0 + number, "best_val_loss": 1.0 + number, "best_global_step": 50, "model": f"/{number}"}
        assert study.report(number, 50, result) is (number > 0), "one in three goes on"
    assert study.best is not None
    assert study.best_point(study.best) == "step 50"
    with pytest.raises(UserError, match="counts in steps: give --hours"):
        dataclasses.replace(search, template=dataclasses.replace(search.template, train=train), budget=Budget(3, epochs=9))


def test_a_run_whose_first_weights_lie_elsewhere_now_is_the_same_run_in_mlflow(search: Search) -> None:
    """Their path was a parameter: the storage, seen under another name from another machine, was refused."""
    study, run = search.open_study(), None
    study.ask(search.budget)
    for uri in ("/mnt/a/start/d1", "/mnt/b/start/d1"):
        start = StartWeights(uri, "d1")
        begun = dataclasses.replace(search, template=dataclasses.replace(search.template, start=start))
        recorder, tracker, _ = open_recorder(begun, study)
        recorder.observe(0, "start", {})
        recorder.close()
        run = tracker.describe(str(tracker.find(search.trial_key(study.trial(0)))))
    assert run is not None
    assert (run.params["start.digest"], run.params["start.uri"]) == ("d1", "/mnt/a/start/d1")
