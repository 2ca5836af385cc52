"""A worker that hangs is ended and says where it stood."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from raymed.storage.folder import Folder
from raymed.training import stall
from raymed.training.stall import EXIT_CODE, STALLED, StallGuard

HANGS = """
import sys, threading
from raymed.storage.folder import Folder
from raymed.training.stall import StallGuard

def waits_for_ever():
    threading.Event().wait()

StallGuard(0.01, Folder.at(sys.argv[1]), worker=3)
waits_for_ever()
"""


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_and_its_note_says_where_it_stood(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], timeout=300)
    assert done.returncode == EXIT_CODE
    note = (tmp_path / STALLED).read_text()
    assert "worker 3" in note and "waits_for_ever" in note and "train.stall_minutes" in note


@pytest.mark.slow
def test_a_storage_that_hangs_too_does_not_keep_it(tmp_path: Path) -> None:
    blocked = HANGS.replace("StallGuard(0.01", "Folder.write = lambda *_: threading.Event().wait()\nStallGuard(0.01")
    blocked = blocked.replace("\ndef", "\nfrom raymed.training import stall\nstall.NOTE_SECONDS = 0.1\ndef", 1)
    assert subprocess.run([sys.executable, "-c", blocked, str(tmp_path)], timeout=300).returncode == EXIT_CODE


class Clock:
    """The guard's, which a busy machine does not move; who would have been ended is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.looks, self.ended = 0.0, 0, 0
        monkeypatch.setattr(stall, "time", SimpleNamespace(monotonic=self.look))
        monkeypatch.setattr(StallGuard, "_end", lambda _: setattr(self, "ended", self.ended + 1))

    def look(self) -> float:
        self.looks += 1
        return self.now

    def move(self, seconds: float) -> None:
        """So many seconds go by; the guard sees it."""
        self.now += seconds
        seen = self.looks + 2  # the first may have been under way
        while self.looks < seen:
            time.sleep(0.01)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_worker_that_gets_on_or_has_ended_is_left_alone(clock: Clock, tmp_path: Path) -> None:
    guard = StallGuard(0.01, Folder.at(str(tmp_path)), worker=0)
    for _ in range(3):
        clock.move(0.5)
        guard.step()
    guard.close()
    clock.now += 60
    time.sleep(0.5)  # it looked every 0.15 s
    assert not clock.ended


def test_a_worker_that_waits_for_another_which_waits_for_the_storage_has_longer(clock: Clock, tmp_path: Path) -> None:
    guard = StallGuard(0.01, Folder.at(str(tmp_path)), worker=0)
    guard.step(60)
    clock.move(60)
    assert not clock.ended
    clock.move(1)
    assert clock.ended, "and not for ever"
    guard.close()
