"""The list of digests that a model's files are checked against."""

import json
from pathlib import Path

import pytest

from raymed.errors import UserError
from raymed.storage.seal import SEAL, check_seal, seal


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
