"""A worker that hangs is ended and says where it stood."""

import subprocess
import sys
import time

from raymed.storage.folder import Folder
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


def test_a_worker_that_hangs_is_ended_and_its_note_says_where_it_stood(tmp_path):
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], timeout=60)
    assert done.returncode == EXIT_CODE
    note = (tmp_path / STALLED).read_text()
    assert "worker 3" in note and "waits_for_ever" in note and "train.stall_minutes" in note


def test_a_storage_that_hangs_too_does_not_keep_it(tmp_path):
    blocked = HANGS.replace("StallGuard(0.01", "Folder.write = lambda *_: threading.Event().wait()\nStallGuard(0.01")
    assert subprocess.run([sys.executable, "-c", blocked, str(tmp_path)], timeout=60).returncode == EXIT_CODE


def test_a_worker_that_gets_on_or_has_ended_is_left_alone(tmp_path):
    guard = StallGuard(0.01, Folder.at(str(tmp_path)), worker=0)
    for _ in range(6):
        time.sleep(0.2)
        guard.step()
    guard.close()
    time.sleep(1)
    assert not (tmp_path / STALLED).exists()


def test_a_worker_that_waits_for_another_which_waits_for_the_storage_has_longer(tmp_path):
    guard = StallGuard(0.01, Folder.at(str(tmp_path)), worker=0)
    guard.step(60)
    time.sleep(1)  # it would have been ended after 0.6
    guard.close()
    assert not (tmp_path / STALLED).exists()
