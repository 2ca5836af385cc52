"""Tracking must leave the same MLflow state however often a command is run again."""

from __future__ import annotations

import math
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    UNAUTHENTICATED,
)

from raymed.errors import UserError
from raymed.tracking.address import check_reachable
from raymed.tracking.names import flatten
from raymed.tracking.refusals import is_denied, is_permanent
from raymed.tracking.tracker import DRAWN, GENERATION, KEY, REASON, Tracker


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("tracking")
    return Tracker.open(f"sqlite:///{folder}/mlflow.db", "lung")


def reopened(tracker: Tracker) -> Tracker:
    """What a new process sees."""
    return Tracker.open(tracker.uri, tracker.experiment)


def test_a_rerun_finds_its_run_instead_of_making_a_second_one(tracker: Tracker) -> None:
    parent = tracker.run("search", "search")
    first = tracker.run("search/trial-1", "trial 1", parent, {"raymed.fold": "0"}, {"train": {"lr": 1e-3}})
    again = reopened(tracker).run("search/trial-1", "trial 1", parent, {"raymed.fold": "0"}, {"train": {"lr": 1e-3}})
    other = tracker.run("search/trial-10", "trial 10", parent)
    assert first == again != other
    record = tracker.describe(first)
    assert record.parent == parent
    assert record.params == {"train.lr": "0.001"}
    assert record.tags["raymed.fold"] == "0"


def test_names_with_quotes_and_chinese_are_found_again(tracker: Tracker) -> None:
    key = 'O\'Brien "first" `search` 肺部%'
    assert tracker.run(key, key) == tracker.run(key, key)
    assert tracker.describe(tracker.run(key, key)).name == key
    assert tracker.find("O'Brien") is None


def test_an_epoch_reported_twice_has_one_step(tracker: Tracker) -> None:
    run = tracker.run("epochs", "epochs")
    for tracked in (tracker, reopened(tracker)):
        for epoch in (1, 2):
            tracked.history.log_validation(run, epoch, {"val_loss": 1 / epoch, "train_loss": math.nan})
            tracked.history.log_validation(run, epoch, {"val_loss": 9.0})
    reopened(tracker).history.log_validation(run, 3, {"val_loss": 0.3})
    history = tracker.client.get_metric_history(run, "val_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 0.3)]
    assert len(tracker.client.get_metric_history(run, "train_loss")) == 2


def test_every_step_is_written_once_whatever_is_reported_again(tracker: Tracker) -> None:
    run = tracker.run("steps", "steps")
    rows = [{"global_step": step, "train_loss": 1 / step, "lr": 0.1} for step in range(1, 1300)]
    tracker.history.log_steps(run, rows[:700], 5)
    tracker.history.log_steps(run, rows[650:700], 6)
    reopened(tracker).history.log_steps(run, rows[600:], 7)
    history = tracker.client.get_metric_history(run, "step/train_loss")
    assert [metric.step for metric in history] == list(range(1, 1300))
    assert [metric.timestamp for metric in history] == [5] * 700 + [7] * 599
    assert tracker.describe(run).metrics == {"step/train_loss": 1 / 1299, "step/lr": 0.1}


def test_validations_counted_in_steps_lie_at_their_steps(tracker: Tracker) -> None:
    run = tracker.run("counted", "counted")
    for step in (500, 1000, 1000):
        reopened(tracker).history.log_validation(
            run, step, {"val_loss": 1 / step, "epoch": step / 800}, counted="global_step"
        )
    assert [metric.step for metric in tracker.client.get_metric_history(run, "val_loss")] == [500, 1000]
    assert tracker.describe(run).metrics == {"val_loss": 0.001, "epoch": 1.25, "global_step": 1000}


def test_a_creation_whose_answer_was_lost_leaves_one_run(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client then repeats it by itself."""
    create = tracker.client.create_run

    def twice(*arguments: Any, **settings: Any) -> Any:
        create(*arguments, **settings)
        return create(*arguments, **settings)

    monkeypatch.setattr(tracker.client, "create_run", twice)
    run = tracker.run("repeated", "repeated")
    monkeypatch.undo()
    assert [found.info.run_id for found in tracker._with_key("repeated")] == [run]
    assert tracker.run("repeated", "repeated") == run


def test_of_twin_runs_the_one_with_data_stays_though_the_other_is_dated_before_it(tracker: Tracker) -> None:
    """MLflow's client dates a run before it asks for it, and the request of a process that stood still comes late."""
    run = tracker.run("twins", "twins")
    tracker.history.log_validation(run, 1, {"val_loss": 0.5})
    late = tracker.client.create_run(tracker.experiment_id, start_time=1, tags={KEY: "twins"}).info.run_id
    assert tracker.find("twins") == tracker.run("twins", "twins") == run
    assert tracker.client.get_run(late).info.lifecycle_stage == "deleted"


def test_a_batch_whose_answer_was_lost_has_each_value_once(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log_batch = tracker.run("lost answer", "lost answer"), tracker.client.log_batch

    def losing(*arguments: Any, **settings: Any) -> None:
        log_batch(*arguments, **settings)
        raise ConnectionError("the answer was lost")

    for at in (1000, 2000):
        monkeypatch.setattr(tracker.client, "log_batch", losing)
        with pytest.raises(ConnectionError):
            tracker.history.log_validation(run, at, {"val_loss": 0.5}, at)
        monkeypatch.undo()
        tracker.history.log_validation(run, at, {"val_loss": 0.5})  # later, by the same process, which looks once more
        tracker.history._validations.pop(run, None)  # as the next process, and one that wrote no more than half of it
        tracker.history.write(run, {"val_loss": 0.5, "epoch": at}, at, at)
        tracker.history.log_validation(run, at, {"val_loss": 0.5}, at)
    history = tracker.client.get_metric_history(run, "val_loss")
    assert [(metric.step, metric.timestamp) for metric in history] == [(1000, 1000), (2000, 2000)]


def test_runs_of_another_search_under_the_same_name_are_not_gone_on_with(tracker: Tracker) -> None:
    first = tracker.run("reborn", "reborn", tags={GENERATION: "one"}, params={"lr": 1})
    tracker.history.log_validation(first, 1, {"val_loss": 0.5})
    second = tracker.run("reborn", "reborn", tags={GENERATION: "two"}, params={"lr": 2})
    assert second != first
    assert tracker.client.get_metric_history(second, "val_loss") == []
    assert tracker.client.get_run(first).info.lifecycle_stage == "deleted", "and can be restored"
    assert tracker.run("reborn", "reborn", tags={GENERATION: "two"}) == second
    assert tracker.run("reborn", "reborn") == second, "for who does not care"
    old = tracker.run("from before", "from before")
    assert tracker.run("from before", "from before", tags={GENERATION: "three"}) == old


def test_a_run_of_a_trial_drawn_otherwise_is_let_go_and_one_of_before_that_was_noted_is_kept(tracker: Tracker) -> None:
    old = tracker.run("drawn", "drawn", tags={GENERATION: "one"}, params={"lr": 1})
    assert tracker.run("drawn", "drawn", tags={GENERATION: "one", DRAWN: "a"}, params={"lr": 1}) == old
    new = tracker.run("drawn", "drawn", tags={GENERATION: "one", DRAWN: "b"}, params={"lr": 2})
    assert new != old and tracker.client.get_run(old).info.lifecycle_stage == "deleted", "and can be restored"
    with pytest.raises(UserError, match="other settings"):
        tracker.run("drawn", "drawn", tags={GENERATION: "one", DRAWN: "b"}, params={"lr": 3})


def test_answers_that_stay_the_same_are_told_from_a_server_that_is_away(tracker: Tracker) -> None:
    run = tracker.run("deleted", "deleted")
    tracker.client.delete_run(run)
    with pytest.raises(MlflowException) as refused:
        tracker.history.log_validation(run, 1, {"val_loss": 1.0})
    assert is_permanent(refused.value)
    assert not is_permanent(MlflowException("connection refused"))
    assert not is_permanent(MlflowException("slow down", error_code=REQUEST_LIMIT_EXCEEDED))
    for code in (UNAUTHENTICATED, PERMISSION_DENIED):
        error = MlflowException("the token has expired", error_code=code)
        assert is_denied(error) and not is_permanent(error), "somebody may renew it"
    assert not is_denied(MlflowException("connection refused"))


def test_unchanged_run_metrics_are_not_repeated(tracker: Tracker) -> None:
    run = tracker.run("test figures", "test figures")
    for value in (0.9, 0.9, 0.8):
        reopened(tracker).metrics(run, {"test_accuracy": value})
    assert [metric.value for metric in tracker.client.get_metric_history(run, "test_accuracy")] == [0.9, 0.8]
    assert tracker.describe(run).metrics["test_accuracy"] == 0.8


def test_figures_of_classes_with_any_name_are_written(tracker: Tracker) -> None:
    run = tracker.run("names", "names")
    for _ in range(2):
        reopened(tracker).metrics(run, {"top_1/COVID (mild)": 0.5, "top_1/肺炎": 0.25})
    tracker.history.log_validation(run, 1, {"val_loss_a,b": 1.0})
    assert tracker.describe(run).metrics == {
        "top_1/COVID _mild_": 0.5, "top_1/肺炎": 0.25, "val_loss_a_b": 1.0, "epoch": 1.0,
    }  # fmt: skip
    assert len(tracker.client.get_metric_history(run, "top_1/COVID _mild_")) == 1


def test_changed_settings_under_one_key_are_refused_by_name(tracker: Tracker) -> None:
    tracker.run("changed", "changed", params={"train": {"lr": 0.1, "layers": [1, 2]}})
    tracker.run("changed", "changed", params={"train": {"lr": 0.1, "layers": [1, 2], "new": True}})
    with pytest.raises(UserError, match=r"train\.lr: was 0\.1, now 0\.2(?s:.*)--name"):
        tracker.run("changed", "changed", params={"train": {"lr": 0.2}})


def test_a_run_that_goes_on_with_other_workers_keeps_those_it_began_with(tracker: Tracker) -> None:
    for workers in (8, 2):
        run = reopened(tracker).run("moved", "moved", params={"lr": 1}, begun_with={"how": {"workers": workers}})
    assert tracker.describe(run).params == {"lr": "1", "how.workers": "8"}


def test_long_values_are_cut_visibly_and_kept_whole(tracker: Tracker, tmp_path: Path) -> None:
    text = "x" * 10_000
    many = {f"p{number}": number for number in range(250)}
    run = tracker.run("long", "long", tags={"note": text}, params={"space": text, **many})
    tracker.run("long", "long", tags={"note": text}, params={"space": text, **many})
    record = tracker.describe(run)
    assert "the whole value is the artefact params/space.txt" in record.params["space"]
    assert "the whole value is the artefact tags/note.txt" in record.tags["note"]
    assert len(record.params) == 251
    whole = tracker.client.download_artifacts(run, "params/space.txt", str(tmp_path))
    assert Path(whole).read_text() == text


def test_a_failed_run_says_why_and_can_go_on(tracker: Tracker) -> None:
    run = tracker.run("failed", "failed")
    tracker.finish(run, "FAILED", "out of memory on worker 1")
    ended = tracker.client.get_run(run).info.end_time
    time.sleep(0.01)
    tracker.finish(run, "FAILED", "out of memory on worker 1")
    assert tracker.client.get_run(run).info.end_time == ended
    assert tracker.describe(run).tags[REASON] == "out of memory on worker 1"
    tracker.reopen(run)
    assert tracker.describe(run).status == "RUNNING"
    tracker.finish(run, "FINISHED")
    assert tracker.describe(run).status == "FINISHED"


def test_a_run_that_was_interrupted_and_finished_gives_no_reason_any_more(tracker: Tracker) -> None:
    run = tracker.run("went on", "went on")
    tracker.finish(run, "KILLED", "interrupted; the same command goes on")
    tracker.finish(run, "FINISHED")
    assert tracker.describe(run).tags[REASON] == ""


def test_the_data_set_is_one_input_with_its_digest(tracker: Tracker) -> None:
    run = tracker.run("data", "data")
    for _ in range(2):
        tracker.input(run, "lung_ct", "ab" * 16, "s3://bucket/prepared", "training")
    (found,) = tracker.client.get_run(run).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, found.dataset.source_type) == ("lung_ct", "ab" * 16, "s3")
    assert [tag.value for tag in found.tags] == ["training"]


def test_artefacts_lie_beside_the_database_wherever_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    tracker = Tracker.open("sqlite:///runs/mlflow.db", "lung")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = tracker.run("a", "a")
    tracker.text(run, "card", "card.md")
    assert (tmp_path / "work/runs/mlflow.db").exists()
    assert list((tmp_path / "work/runs/artifacts").rglob("card.md"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_unknown_run_is_a_clear_error(tracker: Tracker) -> None:
    with pytest.raises(UserError, match="there is no run 'nonsense'"):
        tracker.describe("nonsense")


def test_a_server_that_is_away_is_not_a_run_that_is_not_there(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(run_id: str) -> None:
        raise MlflowException("API request failed: connection refused")

    monkeypatch.setattr(tracker.client, "get_run", away)
    with pytest.raises(MlflowException, match="refused"):
        tracker.finish("0" * 32, "FINISHED")


def test_a_deleted_experiment_is_a_clear_error(tracker: Tracker) -> None:
    other = Tracker.open(tracker.uri, "deleted")
    other.client.delete_experiment(other.experiment_id)
    with pytest.raises(UserError, match=r"'deleted' at .* was deleted"):
        Tracker.open(tracker.uri, "deleted")


@pytest.mark.parametrize("uri", ["runs/mlruns", "file:///tmp/mlruns"])
def test_a_folder_as_address_names_the_one_to_give(uri: str) -> None:
    with pytest.raises(UserError, match=r"--tracking-uri sqlite:////.*mlflow\.db"):
        Tracker.open(uri, "lung")


def test_a_database_that_cannot_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 100)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"it waits {seconds} s, to try again what cannot be"))
    for name in ("file/mlflow.db", "broken.db"):
        with pytest.raises(UserError, match="cannot be written"):
            Tracker.open(f"sqlite:///{tmp_path}/{name}", "lung")


class Refusing(BaseHTTPRequestHandler):
    """A server that asks for a password."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.headers["Authorization"] == "Basic YW5uYTpzZWNyZXQ=":  # anna:secret
            self.send_response(200)
            self.end_headers()
        else:
            self.send_error(401, "Unauthorized")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_that_is_none_is_told_as_one() -> None:
    with pytest.raises(UserError, match=r"http://\[ does not answer"):
        check_reachable("http://[")


def test_a_server_that_does_not_answer_is_asked_once(refusing: str) -> None:
    Refusing.asked.clear()
    with pytest.raises(UserError, match="answers 401"):
        Tracker.open(refusing, "lung")
    assert len(Refusing.asked) == 1
    with pytest.raises(UserError, match="does not answer within 5 s"):
        Tracker.open("http://127.0.0.1:9", "lung")
    with pytest.raises(UserError, match="cannot be used"):
        Tracker.open("nonsense://host/db", "lung")


def test_a_server_that_asks_for_a_password_is_given_that_of_the_environment(
    refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    check_reachable(refusing)


def write_many(uri: str, name: str) -> None:
    tracker = Tracker.open(uri, "lung")
    run = tracker.run(name, name)
    for epoch in range(30):
        tracker.history.log_validation(run, epoch, {f"m{number}": float(epoch) for number in range(10)})


@pytest.mark.slow
def test_two_writers_of_a_new_database_do_not_lock_each_other_out(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(uri, f"writer {number}")) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("select count(*) from metrics").fetchone() == (2 * 30 * 11,)
        assert connection.execute("select count(*) from tags where key = ?", (KEY,)).fetchone() == (2,)


def test_settings_become_dotted_names() -> None:
    nested = {"model": {"preset": "tiny", "freeze": {}}, "layers": (1, 2), "path": None}
    assert dict(flatten(nested)) == {"model.preset": "tiny", "model.freeze": "{}", "layers": "[1, 2]", "path": "None"}


def test_nothing_is_sent_to_mlflows_makers() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_forgetting_a_search_takes_its_trials_and_leaves_its_neighbours(tracker: Tracker) -> None:
    kept = [tracker.run(key, key) for key in ("search-2", "search-2/trial-0000")]
    for key in ("search", "search/trial-0000", "search/trial-0001"):
        tracker.run(key, key)
    tracker.forget("search")
    assert tracker.find("search") is None
    assert tracker.find("search/trial-0001") is None
    assert [tracker.find("search-2"), tracker.find("search-2/trial-0000")] == kept


def test_who_only_looks_up_makes_no_experiment_and_finds_runs_of_any(tracker: Tracker) -> None:
    run_id = tracker.run("search", "search")
    before = {each.name for each in tracker.client.search_experiments()}
    looking = Tracker.open(tracker.uri)
    assert looking.describe(run_id).name == "search"
    assert {each.name for each in looking.client.search_experiments()} == before


def test_a_server_that_is_away_when_the_winner_is_judged_is_waited_for(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that was just started again ended a night without a model."""
    looks: list[str] = []

    def reachable(uri: str) -> tuple[str, str | None]:
        looks.append(uri)
        if len(looks) < 4:
            raise UserError(f"the tracking server {uri} does not answer within 5 s")
        return uri, None

    monkeypatch.setattr("raymed.tracking.tracker.reachable", reachable)
    monkeypatch.setattr("raymed.clock.sleep", lambda seconds: None)
    assert Tracker.open_patiently(tracker.uri, tracker.experiment).experiment_id == tracker.experiment_id
    assert caplog.text.count("MLflow is waited for, 10 minutes at most") == 1
    looks.clear()
    with pytest.raises(UserError, match="does not answer"):
        Tracker.open_patiently(tracker.uri, tracker.experiment, seconds=-1.0)
    assert len(looks) == 1
