"""A file by which others see that its process lives is renewed in time, also by a storage that refuses now and then."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from raymed.storage import heartbeat
from raymed.storage.folder import Folder
from raymed.storage.heartbeat import Heartbeat


def test_a_renewal_that_failed_is_tried_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four refused ones in a row made others take the process for dead."""
    assert heartbeat.BEAT + 3 * heartbeat.AGAIN < heartbeat.EXPIRES / 2
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    monkeypatch.setattr(heartbeat, "AGAIN", 0.02)
    tries, renewed = list[int](), threading.Event()

    def renew() -> bool:
        monkeypatch.setattr(heartbeat, "BEAT", 600.0)
        tries.append(1)
        if len(tries) < 4:
            raise OSError("AWS Error SLOW_DOWN during PutObject operation")
        renewed.set()
        return True

    beating = Heartbeat(Folder.at(tmp_path), "file", renew)
    beating.start()
    assert renewed.wait(60)
    beating.end()


def test_the_file_goes_with_its_process_and_where_it_counts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    for counts in (True, False):
        beats = threading.Event()

        def renew(beats: threading.Event = beats, counts: bool = counts) -> bool:
            (tmp_path / "file").touch()
            beats.set()
            return counts

        beating = Heartbeat(Folder.at(tmp_path), "file", renew)
        beating.start()
        assert beats.wait(60)
        if counts:
            beating.end()
        beating._background.join(60)
        assert not (tmp_path / "file").exists()
