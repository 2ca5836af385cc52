"""The command of a search is given twice: one process does what it says, from the search to the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.job import Outcome
from raymed.storage.folder import Folder
from raymed.systems.options import SearchOptions
from raymed.systems.search_job import search_and_conclude
from raymed.systems.toy.options import ToyOptions

LEASE = ".leases/search"


@dataclass(frozen=True, kw_only=True)
class SearchedToy(ToyOptions, SearchOptions):
    """Options of a search."""


@pytest.fixture
def done(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Each step that was done, with how many processes had a claim on the search meanwhile."""
    steps: list[tuple[str, int]] = []

    def note(name: str) -> Any:
        def done(*_: Any) -> Outcome:
            steps.append((name, len([*Path(tmp_path, LEASE).glob("*.json")])))
            return Outcome("", {})

        return done

    monkeypatch.setattr("raymed.cluster.connection.connect", lambda start: None)
    monkeypatch.setattr("raymed.tuning.execution.run_search", note("search"))
    monkeypatch.setattr("raymed.tuning.result.conclude_search", note("judge, refit and register"))
    return steps


def test_a_search_is_held_until_its_winner_is_registered(
    prepared: Prepared, tmp_path: Path, done: list[tuple[str, int]]
) -> None:
    search_and_conclude(SearchedToy(data=prepared.folder.uri, storage=str(tmp_path), name="search"))
    assert done == [("search", 1), ("judge, refit and register", 1)]
    assert Folder.at(tmp_path).child(LEASE).names() == [], "and let go"


def test_the_same_command_on_another_machine_does_nothing(
    prepared: Prepared, tmp_path: Path, done: list[tuple[str, int]]
) -> None:
    claim = {"host": "other-head", "machine": "other-head 1", "pid": 7, "started": "1"}
    Folder.at(tmp_path).write(f"{LEASE}/theirs.json", json.dumps(claim).encode())
    with pytest.raises(UserError, match="7 on other-head"):
        search_and_conclude(SearchedToy(data=prepared.folder.uri, storage=str(tmp_path), name="search"))
    assert done == []
