"""What fits into a search's time: the leader ends its schedule, the winner is judged and trained again by the end."""

import dataclasses
from pathlib import Path

import pytest
from optuna.trial import TrialState

from raymed.storage.folder import Folder
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning import room
from raymed.tuning.budget import Budget
from raymed.tuning.journal import Journal
from raymed.tuning.search import Search
from raymed.tuning.settings import Halving, SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import Study
from raymed.tuning.timetable import GRACE, REPORTING, Timetable

HOURS, EPOCH = 8 * 3600.0, 100.0  # of the search, and seconds of an epoch


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two trials under way: the first leads after 6 of 8 epochs, the second is worse."""
    journal = Journal(tmp_path / "study.journal", Folder.at(tmp_path))
    study = Study(journal, "search", {"train.lr": Dimension(1e-4, 1e-2)}, [], Halving(0), seed=1)
    for number, losses in enumerate(([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.8])):
        study.ask(Budget(9))
        for epoch, loss in enumerate(losses, 1):
            best = {"best_val_loss": loss, "best_epoch": epoch, "model": f"epoch-{epoch}"}
            study.report(number, epoch, {"val_loss": loss, "seconds": EPOCH, **best})
    return study


def left(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(Budget, "seconds_left", seconds)


def test_the_leader_ends_its_schedule_while_others_stop_and_nothing_begins(study, monkeypatch):
    table = Timetable(Budget(9, seconds=HOURS), seconds=HOURS, epochs=8, judging=1.0)
    end = REPORTING + EPOCH
    left(monkeypatch, end + 2 * EPOCH + 1)
    assert [table.is_over(study, number) for number in (0, 1, None)] == [False, False, False]
    left(monkeypatch, end + 2 * EPOCH - 1)
    assert [table.is_over(study, number) for number in (0, 1, None)] == [False, True, True]
    left(monkeypatch, end + EPOCH + 1)
    assert not table.is_over(study, 0)
    left(monkeypatch, end + EPOCH - 1)
    assert table.is_over(study, 0), "its next epoch would end when judging should have begun"


def test_training_again_has_its_time_set_aside(study, monkeypatch):
    table = Timetable(Budget(9, seconds=HOURS, refit="all"), seconds=HOURS, epochs=8, judging=1.0, refitting=1.5)
    left(monkeypatch, REPORTING + 2 * EPOCH + 6 * 1.5 * EPOCH + 1)
    assert not table.is_over(study, 0)
    left(monkeypatch, REPORTING + 2 * EPOCH + 6 * 1.5 * EPOCH - 1)
    assert table.is_over(study, 0)


def test_the_time_that_validations_and_checkpoints_take_is_set_aside_too(study, monkeypatch):
    study.report(1, 3, {"val_loss": 0.7, "seconds": EPOCH, "pause_seconds": 9 * EPOCH, "best_val_loss": 0.7})
    table = Timetable(Budget(9, seconds=HOURS, refit="all"), seconds=HOURS, epochs=8, judging=1.0, refitting=1.5)
    left(monkeypatch, REPORTING + 4 * EPOCH + 6 * 1.5 * 2 * EPOCH - 1)
    assert table.is_over(study, 0), "9 epochs took as long as 18"
    left(monkeypatch, REPORTING + 4 * EPOCH + 6 * 1.5 * 2 * EPOCH + 1)
    assert not table.is_over(study, 0)


def test_a_leader_that_has_ended_or_would_need_too_long_keeps_nobody_waiting(study, monkeypatch):
    long = Timetable(Budget(9, seconds=HOURS), seconds=HOURS, epochs=7 + int(GRACE * HOURS / EPOCH), judging=1.0)
    left(monkeypatch, REPORTING + 2 * EPOCH + 1)
    assert not long.is_over(study, 1)
    study.tell(0, TrialState.COMPLETE)
    assert not Timetable(Budget(9, seconds=HOURS), HOURS, epochs=8, judging=1.0).is_over(study, 1)


def test_what_would_be_validated_after_the_end_of_the_night_is_not_begun(study, monkeypatch):
    by_epochs = Timetable(Budget(9, seconds=HOURS), seconds=HOURS, epochs=40, judging=1.0)
    by_steps = dataclasses.replace(by_epochs, every=50)
    for table, needed in ((by_epochs, EPOCH), (by_steps, 50 * EPOCH)):
        for number in (0, 1, None):
            left(monkeypatch, REPORTING + EPOCH + needed - 1)
            assert table.is_over(study, number)
            left(monkeypatch, max(REPORTING + EPOCH + needed, REPORTING + EPOCH + 34 * EPOCH) + 1)
            assert not table.is_over(study, number)


def test_without_a_limit_of_time_nothing_is_over(study):
    assert not Timetable(Budget(9), seconds=HOURS, epochs=8).is_over(study)


def test_the_plan_says_what_is_done_by_the_end_and_counts_every_row(prepared, tmp_path, monkeypatch):
    budget = Budget(9, seconds=HOURS, refit="all")
    assert "in time for judging the winner, and its training again, by 2" in budget.plan
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("search", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(epochs=3, lr=3e-3))
    settings = SearchSettings(space={"train.lr": Dimension(1e-4, 1e-2)})
    search = Search(template, settings, budget, f"sqlite:///{tmp_path}/mlflow.db")
    resources = type("Each", (), {"workers": 1, "cpus": 1})()
    monkeypatch.setattr(room, "trial_resources", lambda search: (resources, 1))
    monkeypatch.setattr(room, "whole_resources", lambda search, spec: resources)
    table = Timetable.of(search, budget)
    train, rest = len(prepared.rows("train")), len(prepared.rows("val")) + len(prepared.rows("test"))
    folds = sum(len(prepared.rows("train", fold)) for fold in range(prepared.folds))
    assert folds > train and table.refitting == pytest.approx((train + rest + folds) / train), "the folds are trained, too"
    judging = rest / 3 / (train + len(prepared.rows("val")) / 3)
    assert table.judging == pytest.approx(judging)

    class Writing(ToyRecipe):
        def judging_passes(self, rows: int) -> float:
            return 5.0 * rows

    writing = Writing(recipe.names, recipe.size)
    search = dataclasses.replace(search, template=dataclasses.replace(template, recipe=writing))
    assert Timetable.of(search, budget).judging == pytest.approx(5 * judging), "texts are written after the end of the night"
