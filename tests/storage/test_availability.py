"""What a storage that is away for a moment, or for long, does to whoever needs it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raymed import clock
from raymed.errors import RunError, StorageError, UserError
from raymed.storage.availability import once, second_look, wait_for
from raymed.storage.folder import Folder


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds go by."""
    now = [0.0]

    def sleep(duration: float) -> None:
        now[0] += duration

    monkeypatch.setattr("raymed.clock.seconds", lambda: now[0])
    monkeypatch.setattr("raymed.clock.sleep", sleep)
    return sleep


def tries(passes: Callable[[float], None], takes: Iterator[float]) -> Callable[[], str]:
    """An action each try of which takes so many seconds, and fails, until none is left."""

    def act() -> str:
        if (seconds := next(takes, None)) is None:
            return "done"
        passes(seconds)
        raise OSError(5, "Input/output error")

    return act


def test_an_upload_that_takes_longer_than_a_storage_is_waited_for_is_tried_again(
    tmp_path: Path, passes: Callable[[float], None]
) -> None:
    """One error at the end of an upload of 25 minutes ended the whole search."""
    assert wait_for(tries(passes, iter([1500.0])), Folder.at(tmp_path), 20) == "done"


def test_a_storage_that_stays_away_is_left_after_the_minutes_that_were_said(
    tmp_path: Path, passes: Callable[[float], None]
) -> None:
    assert wait_for(tries(passes, iter([0.0] * 598)), Folder.at(tmp_path), 20) == "done"
    with pytest.raises(StorageError, match=r"away from .* for 20 minutes"):
        wait_for(tries(passes, iter([0.0] * 603)), Folder.at(tmp_path), 20)
    with pytest.raises(StorageError, match="for 0 minutes"):
        wait_for(tries(passes, iter([0.0])), Folder.at(tmp_path), 0)


def test_a_store_that_denies_access_for_a_moment_is_waited_for(tmp_path: Path, passes: Callable[[float], None]) -> None:
    """A machine whose credentials did not come for two seconds stopped the whole search."""
    seconds = [0.0]

    def act() -> str:
        seconds.append(clock.seconds())
        if seconds[-1] < refused:
            raise OSError("When uploading: AWS Error ACCESS_DENIED during PutObject operation")
        return "done"

    refused = 30.0
    assert wait_for(act, Folder.at(tmp_path), 20) == "done"
    refused = 1e9
    with pytest.raises(StorageError, match="mend the permissions"):
        wait_for(act, Folder.at(tmp_path), 20)
    assert 90 <= seconds[-1] <= 100, "it is believed after a minute"


def test_a_denial_right_after_an_outage_is_waited_for_like_any_other(
    tmp_path: Path, passes: Callable[[float], None]
) -> None:
    def act() -> str:
        if clock.seconds() < 90:
            raise OSError("When uploading: AWS Error NETWORK_CONNECTION: no answer")
        if clock.seconds() < 100:
            raise OSError("When uploading: AWS Error ACCESS_DENIED during PutObject operation")
        return "done"

    assert wait_for(act, Folder.at(tmp_path), 20) == "done"


def test_what_takes_long_by_itself_is_not_called_a_wait(passes: Callable[[float], None]) -> None:
    said = list[OSError]()
    wait = once(said.append)
    passes(600.0)  # an upload, at the end of which there is one error
    wait(OSError("first"))
    assert not said
    for _ in range(2):
        passes(40.0)
        wait(OSError("still"))
    assert [str(error) for error in said] == ["still"]


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_what_is_gone_at_one_look_alone_is_not_gone(tmp_path: Path, kind: type[Exception]) -> None:
    looks = iter([kind("gone"), None])

    def look() -> str:
        if (error := next(looks)) is not None:
            raise error
        return "there"

    assert second_look(look, Folder.at(tmp_path)) == "there"


def test_what_is_gone_at_two_looks_is_gone_unless_its_storage_is_away(tmp_path: Path) -> None:
    def look() -> None:
        raise RunError("gone")

    there = tmp_path / "storage"
    there.mkdir()
    with pytest.raises(RunError, match="gone"):
        second_look(look, Folder.at(there))
    shutil.rmtree(there)
    with pytest.raises(FileNotFoundError):
        second_look(look, Folder.at(there))
