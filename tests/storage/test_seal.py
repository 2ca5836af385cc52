"""The list of digests that a model's files are checked against."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raymed.errors import UserError
from raymed.storage.seal import SEAL, check_archive, check_seal, seal


def test_a_folder_within_counts_by_its_own_list_and_what_is_added_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "inner" / "a").write_text("a")
    seal(tmp_path / "outer" / "inner")
    (tmp_path / "outer" / "b").write_text("b")
    seal(tmp_path / "outer")
    assert set(json.loads((tmp_path / "outer" / SEAL).read_text())["files"]) == {"b", f"inner/{SEAL}"}
    (tmp_path / "outer" / "added").write_text("by who copied it")
    check_seal(tmp_path / "outer")
    (tmp_path / "outer" / "inner" / "a").unlink()
    with pytest.raises(UserError, match="inner/a is missing"):
        check_seal(tmp_path / "outer" / "inner")
    (tmp_path / "outer" / "inner" / SEAL).write_text("{")
    for folder in (tmp_path / "outer", tmp_path / "outer" / "inner"):
        with pytest.raises(UserError, match=SEAL):
            check_seal(folder)


@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin", "weights.safetensors"])
def test_text_in_the_place_of_weights_is_called_so_and_not_by_what_a_pickle_makes_of_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=rf"{name} is text and holds no weights; it begins: 'version https://git-lfs"):
        check_archive(tmp_path / name)


def test_whatever_else_is_no_archive_is_left_to_who_reads_it(tmp_path: Path) -> None:
    save_file({"a": torch.ones(300)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.ones(300)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "empty.pt").touch()
    for name in ("a.safetensors", "old.pt", "empty.pt", "missing.pt"):
        check_archive(tmp_path / name)
