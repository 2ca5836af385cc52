"""Pretrained weights are known by what they hold, wherever they lie."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raymed.errors import UserError
from raymed.models.pretrained import by_contents, fingerprint, held_by, pretrained_of
from raymed.models.settings import ClipModelSettings, ModelSettings


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_moved_model_is_the_same_one_whatever_else_lies_beside_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a" / "model")
    held = fingerprint(str(model))
    (model / "README.md").write_text("Read me.")
    (model / ".cache").mkdir()
    (model / ".cache" / "download.json").write_text("{}")
    (model / "pytorch_model.bin").write_bytes(b"the same weights, which nobody reads beside safetensors")
    shutil.move(model, tmp_path / "b")
    assert fingerprint(str(tmp_path / "b")) == held


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt", "part/config.json"])
def test_a_model_with_another_file_is_another_one(tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path / "model")
    held = fingerprint(str(model))
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"others")
    assert fingerprint(str(model)) != held


def test_weights_of_the_same_size_that_are_exchanged_while_a_process_runs_are_noticed(tmp_path: Path) -> None:
    file = write_model(tmp_path / "model") / "model.safetensors"
    held = fingerprint(str(file))
    os.utime(file, ns=(1, 1))
    assert fingerprint(str(file)) == held, "a file that was touched holds what it held"
    file.write_bytes(b"WEIGHTS")
    assert fingerprint(str(file)) != held


def test_a_file_of_weights_may_be_called_otherwise_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "one.pth"
    file.write_bytes(b"weights")
    held = fingerprint(str(file))
    assert fingerprint(str(file.rename(tmp_path / "two.pth"))) == held
    with pytest.raises(UserError, match=r"cannot read the pretrained weights .*one\.pth"):
        fingerprint(str(file))


def test_a_large_file_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "large.safetensors"
    file.write_bytes(bytes(40 * 2**20))
    held = fingerprint(str(file))
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\1")
    assert fingerprint(str(file)) != held


@pytest.mark.parametrize(
    ("settings", "paths"),
    [
        (ModelSettings(path="/m"), ["/m"]),
        (ModelSettings(), []),
        (ClipModelSettings(image_weights="/i", text_encoder="/t"), ["/i", "/t"]),
        (ClipModelSettings(text_encoder="characters"), []),
    ],
)
def test_weights_of_classifiers_are_known_by_what_they_hold(settings: Any, paths: list[str]) -> None:
    @dataclass(frozen=True)
    class Outer:
        model: Any = field(default_factory=lambda: settings)

    assert list(pretrained_of(Outer())) == paths


def test_what_weights_hold_takes_the_place_of_their_paths() -> None:
    settings = {"model": {"path": "/m", "preset": "tiny"}, "texts": [["/m"], ["other"]], "seed": 1}
    held = {"/m": "weights 3fa9"}
    assert by_contents(settings, held) == {
        "model": {"path": "weights 3fa9", "preset": "tiny"},
        "texts": [["weights 3fa9"], ["other"]],
        "seed": 1,
    }
    assert held_by(settings, held) == {"model.path": "weights 3fa9"}
