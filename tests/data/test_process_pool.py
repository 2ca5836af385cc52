"""Headers that are read in several processes are those that one would have read, and no process stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from raymed.data.sources import SourceSettings, list_source, process_pool

ENDLESS = """
import os, sys, time
from raymed.data.sources import process_pool
process_pool.FEW, process_pool.AT_ONCE, os.cpu_count = 0, 1, lambda: 2
if __name__ == "__main__":
    list(process_pool.each(time.sleep, [0, 0, 600, 600]))
"""


@pytest.mark.slow
def test_a_folder_is_listed_alike_by_one_process_and_by_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.SOPInstanceUID, dataset.InstanceNumber = pydicom.uid.generate_uid(), number
        dataset.ImagePositionPatient = [0, 0, number]
        dataset.Modality = "MR" if number == 4 else "CT"
        dataset.save_as(tmp_path / f"{number}.dcm")
    (tmp_path / "damaged.dcm").write_bytes((tmp_path / "0.dcm").read_bytes()[:300])
    unlabelled = SourceSettings(labelled=False)
    alone = list_source(tmp_path, unlabelled)
    assert len(alone.refusals) >= 2 and alone.studies
    monkeypatch.setattr(process_pool, "FEW", 0)
    monkeypatch.setattr(process_pool, "AT_ONCE", 2)
    assert repr(list_source(tmp_path, unlabelled)) == repr(alone)


@pytest.mark.slow
def test_reading_processes_end_with_the_one_that_asked_however_that_ends(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    asking = subprocess.Popen([sys.executable, str(tmp_path / "endless.py")], start_new_session=True)
    try:
        readers = _until(lambda: [child for child in _children(asking.pid) if b"spawn_main" in _command(child)], 2)
        asking.kill()
        asking.wait()
        end = time.monotonic() + 60
        while any(b"spawn_main" in _command(reader) for reader in readers):
            assert time.monotonic() < end, "a reader goes on for nobody"
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(asking.pid, signal.SIGKILL)


def _until(look: Callable[[], list[int]], many: int) -> list[int]:
    end = time.monotonic() + 120
    while len(found := look()) < many:
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def _children(process: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()]


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
