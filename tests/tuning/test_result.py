"""What comes of a search comes of it once, whenever its command is killed and given again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from optuna.trial import TrialState

from raymed.data.prepared import Prepared
from raymed.errors import RunError, UserError
from raymed.job.job import Outcome
from raymed.registry.alias import known_by
from raymed.registry.candidate import Refit
from raymed.storage.folder import Folder
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.fit import Resources
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning import execution, result, room
from raymed.tuning.budget import Budget
from raymed.tuning.execution import Training, run_search
from raymed.tuning.ray_tune import Observer
from raymed.tuning.result import conclude_search
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension
from raymed.tuning.study import DONE, JUDGING, REFITTING, Study

TRIAL = "search/trial-0000"


@pytest.fixture
def search(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    monkeypatch.setattr(room, "trial_resources", lambda _: (Resources(1, 1, 1, 0), 1))
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("search", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(epochs=1))
    settings = SearchSettings(space={"train.lr": Dimension(1e-4, 1e-2)})
    return Search(template, settings, Budget(trials=1), f"sqlite:///{tmp_path}/mlflow.db")


@contextmanager
def one_epoch_each(search: Search, study: Study, *_: Any) -> Iterator[Training]:
    """Trains in the place of Ray Tune."""

    def train(observe: Observer) -> Mapping[int, str]:
        while (asked := study.ask(search.budget)) is not None:
            told = {"epoch": 1, "val_loss": 0.5, "best_val_loss": 0.5, "best_epoch": 1, "model": "a checkpoint"}
            study.report(asked[0], 1, told)
            observe(asked[0], "epoch", told)
            study.tell(asked[0], TrialState.COMPLETE)
            observe(asked[0], "COMPLETE", {})
        return {}

    yield train


def died(*_: Any) -> NoReturn:
    """In whatever place, the process is killed."""
    raise SystemExit("killed")


def nothing(*_: Any) -> NoReturn:
    """In its place, where nothing is to be trained."""
    pytest.fail("the search was opened again")


@pytest.mark.parametrize(("lacking", "name"), [(TRIAL, "trial 0"), ("search", "search")])
def test_a_search_or_winner_whose_run_mlflow_lacks_is_named_and_the_same_command_writes_it_again(
    search: Search, lacking: str, name: str
) -> None:
    study = run_search(search, trainer=one_epoch_each)
    tracker = search.open_tracker()
    tracker.client.delete_run(str(tracker.find(lacking)))
    with pytest.raises(RunError, match=rf"MLflow has no run of {name}: .* The same command writes it again"):
        conclude_search(search, study)
    run_search(search, trainer=nothing)
    won = tracker.describe(str(tracker.find(TRIAL)))
    assert (won.status, won.parent) == ("FINISHED", tracker.find("search"))


@pytest.mark.parametrize(
    ("step", "refit", "phase"),
    [("train_again", "trainval", REFITTING), ("_judge", "trainval", REFITTING), ("_judge", "none", JUDGING)],
)
def test_a_command_killed_while_the_winner_is_refitted_or_judged_goes_on_there(
    search: Search, monkeypatch: pytest.MonkeyPatch, step: str, refit: str, phase: str
) -> None:
    again = None if refit == "none" else Refit("its checkpoint", ("train", "val"))
    judged: list[Refit | None] = []

    def judge(search: Search, study: Study, best: Any, made: Refit | None, *_: Any) -> Outcome:
        judged.append(made)
        study.enter(DONE)
        return Outcome("", {})

    monkeypatch.setattr(result, "train_again", lambda *_: again)
    monkeypatch.setattr(result, "_judge", judge)
    study = run_search(search, trainer=one_epoch_each)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(result, step, died)
        conclude_search(search, study, refit)
    assert search.open_study().phase == phase and not judged
    for _ in range(2):  # and once more after the end
        study = run_search(search, trainer=nothing)
        conclude_search(search, study, refit)
        assert (study.phase, judged.pop(), len(study.trials)) == (DONE, again, 1)


def test_the_champion_is_the_one_that_the_search_saw_first(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person promotes another one in the night, and the command is killed and given again: that one stays."""
    champions = iter(["1 of 5", "2 of 6"])
    monkeypatch.setattr(execution, "seen_version", lambda *_: next(champions))
    with pytest.raises(SystemExit):
        run_search(search, trainer=died)
    assert run_search(search, trainer=one_epoch_each).champion == "1 of 5"


@pytest.mark.parametrize("alias", [None, "kept"])
def test_a_winner_becomes_champion_later_where_mlflow_was_set_back_or_another_alias_given_first(
    search: Search, monkeypatch: pytest.MonkeyPatch, alias: str | None
) -> None:
    """The search had noted its own version in the place of the champion that it saw first."""
    study, tracker, seen = run_search(search, trainer=one_epoch_each), search.open_tracker(), list[str | None]()

    def register(*_: Any, **how: Any) -> Any:
        seen.append(how["seen"])
        if not tracker.client.search_registered_models():
            tracker.client.create_registered_model(search.model)
            tracker.client.create_model_version(search.model, "file:///winner")
        assessment = SimpleNamespace(differences=lambda *_: {}, files=dict, page=lambda *_: ("report.html", ""))
        return SimpleNamespace(assessment=assessment, facts=None, name=search.model, version="1")

    monkeypatch.setattr(result, "assess_and_register", register)
    for name in ("_summary", "_description", "_outcome"):
        monkeypatch.setattr(result, name, lambda *_: "")
    study.note_champion("7 of 5")
    conclude_search(search, study, alias=alias)
    conclude_search(search, study)
    conclude_search(search, study)
    own = known_by(tracker.client.get_model_version(search.model, "1"))
    assert seen == ([None, "7 of 5", own] if alias else ["7 of 5", own, own])
    tracker.client.delete_registered_model(search.model)
    conclude_search(search, study)
    assert seen[-1] == "7 of 5"


def test_a_run_that_another_machine_trains_is_not_trained_twice(search: Search, tmp_path: Path) -> None:
    claim = {"host": "other-head", "machine": "other-head 1", "pid": 7, "started": "1"}
    Folder.at(tmp_path).write(".leases/search/theirs.json", json.dumps(claim).encode())
    with pytest.raises(UserError, match="7 on other-head"):
        run_search(search, trainer=nothing)
