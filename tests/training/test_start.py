"""The copy of start weights that all workers read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raymed.storage.folder import Folder
from raymed.training.start import StartWeights


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
