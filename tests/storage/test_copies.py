"""Models on their way to a storage and from it to machines: whole, as their lists of digests have them, and sent once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from raymed.errors import UserError
from raymed.storage import disk
from raymed.storage.copies import copy_folder, listed_folders
from raymed.storage.folder import Folder
from raymed.storage.seal import SEAL, check_seal


class Elsewhere(fs.SubTreeFileSystem):
    """A disk that is not taken for a local one, as a bucket's files are, and on which folders need not be made."""

    def open_output_stream(self, path: str, **how: Any) -> pa.NativeFile:
        self.create_dir(path.rpartition("/")[0])
        return super().open_output_stream(path, **how)


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    (tmp_path / "bucket" / "models" / "net" / "tokenizer").mkdir(parents=True)
    return Folder(Elsewhere(str(tmp_path / "bucket"), fs.LocalFileSystem()), "models", "s3://bucket/models")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "net" / "tokenizer").mkdir(parents=True)
    (tmp_path / "net" / "config.json").write_text("{}")
    (tmp_path / "net" / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "net" / "tokenizer" / "vocab.txt").write_text("[PAD]")
    return tmp_path / "net"


def test_a_machine_has_what_was_sent_and_copies_only_what_it_lacks(storage: Folder, model: Path, tmp_path: Path) -> None:
    assert copy_folder(Folder.at(model), storage.child("net")) == 3
    assert copy_folder(Folder.at(model), storage.child("net")) == 0
    storage.write("README", b"a file beside them")
    assert [each.uri for each in listed_folders(storage)] == ["s3://bucket/models/net"]
    here = tmp_path / "machine" / "net"
    assert copy_folder(storage.child("net"), Folder.at(here)) == 3
    check_seal(here)
    assert (here / "tokenizer" / "vocab.txt").read_text() == "[PAD]"
    assert copy_folder(storage.child("net"), Folder.at(here)) == 0
    (here / "config.json").write_text("{ }")  # damaged since
    (here / "model.safetensors.part").write_bytes(b"cut off")
    assert copy_folder(storage.child("net"), Folder.at(here)) == 1
    check_seal(here)


def test_a_file_that_was_damaged_on_its_way_is_no_model(storage: Folder, model: Path, tmp_path: Path) -> None:
    copy_folder(Folder.at(model), storage.child("net"))
    (tmp_path / "bucket" / "models" / "net" / "model.safetensors").write_bytes(b"cut off")
    here = tmp_path / "machine" / "net"
    with pytest.raises(UserError, match=r"net/model\.safetensors is not as sealed\.json lists it"):
        copy_folder(storage.child("net"), Folder.at(here))
    assert not (here / "model.safetensors").exists() and not (here / SEAL).exists()


def test_a_folder_that_was_brought_there_otherwise_is_refused_with_what_to_do(storage: Folder, tmp_path: Path) -> None:
    storage.child("net").filesystem.open_output_stream("models/net/config.json").close()
    assert listed_folders(storage) == []
    with pytest.raises(UserError, match=r"has no list of digests .*jobs/copy_models.py"):
        copy_folder(storage.child("net"), Folder.at(tmp_path / "machine"))


def test_a_list_that_names_files_elsewhere_is_refused(storage: Folder, model: Path, tmp_path: Path) -> None:
    copy_folder(Folder.at(model), storage.child("net"))
    storage.child("net").write(SEAL, b'{"files": {"../../outside": "00"}}')
    with pytest.raises(UserError, match="is not a path inside"):
        copy_folder(storage.child("net"), Folder.at(tmp_path / "machine"))


def test_a_copy_that_would_lie_in_its_own_folder_or_replace_a_file_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would hold its own copy"):
        copy_folder(Folder.at(model), Folder.at(model / "copy"))
    with pytest.raises(UserError, match="is a file"):
        copy_folder(Folder.at(model), Folder.at(model / "config.json"))
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors", "tokenizer"]


def test_names_in_a_copy_s_folders_outlive_a_power_cut_before_its_list_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    keep, rename = disk.keep, disk.rename
    monkeypatch.setattr(disk, "keep", lambda path: (keep(path), done.append(f"kept {path.name}")))
    monkeypatch.setattr(disk, "rename", lambda path, target: (rename(path, target), done.append(f"named {target.name}")))
    copy_folder(Folder.at(model), Folder.at(tmp_path / "copy"))
    last = done.index(f"named {SEAL}")
    for name, folder in (("vocab.txt", "tokenizer"), ("config.json", "copy")):
        assert f"kept {folder}" in done[done.index(f"named {name}") : last]
