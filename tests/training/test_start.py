"""The copy of start weights that all workers read."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from raymed.storage.folder import Folder
from raymed.training.start import StartWeights


def test_a_copy_that_was_abandoned_is_removed_and_one_under_way_is_not(tmp_path: Path) -> None:
    network, copies = tmp_path / "network", tmp_path / "storage" / "start"
    network.mkdir()
    (network / "model.safetensors").write_bytes(b"weights")
    for name, age in (("00112233445566ff-12345678", 7200), ("00112233445566ff-9abcdef0", 60), ("00112233445566ff", 7200)):
        (copies / name).mkdir(parents=True)
        os.utime(copies / name, (time.time() - age,) * 2)
    start = StartWeights.of(network, (), Folder.at(tmp_path / "storage"))
    assert {path.name for path in copies.iterdir()} == {"00112233445566ff-9abcdef0", "00112233445566ff", start.digest}


def test_a_copy_that_a_kill_cut_short_is_not_taken_for_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tmp_path / "network"
    network.mkdir()
    (network / "model.safetensors").write_bytes(b"weights" * 1000)

    def killed(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfile", killed)
        StartWeights.of(network, (), Folder.at(tmp_path / "storage"))
    for _ in range(2):  # and again, once it is there
        start = StartWeights.of(network, (), Folder.at(tmp_path / "storage"))
        assert (Path(start.uri) / "model.safetensors").read_bytes() == b"weights" * 1000
