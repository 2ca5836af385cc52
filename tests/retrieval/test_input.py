"""What features are computed of: any folder of pictures; options that cannot be followed are refused, not passed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.retrieval.input import Input

SIZE = 28


def test_how_pictures_are_read_is_settled_where_they_are_prepared(prepared: Prepared) -> None:
    with pytest.raises(UserError, match=r"--size, --window cannot be followed: .* as they were prepared"):
        Input(input=prepared.folder.uri, size=56, window="mediastinum").open(SIZE)


def test_pictures_that_are_not_prepared_have_no_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--split cannot be followed: .* without splits"):
        Input(input=str(tmp_path), split="test").open(SIZE)


@pytest.mark.parametrize(
    "names",
    [
        {"sick/1.png": "sick"},  # the pictures of one class ask about a gallery of several
        {"v1.0/1.png": "v1.0", "well/2.png": "well"},
        {"1.png": None, "2.png": None},
        {"site/sick/a/b/1.png": "b", "well/2.png": "well"},
    ],
)
def test_pictures_at_any_depth_are_taken_with_their_folder_as_label(names: dict[str, str | None], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((30, 30), np.uint8)).save(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    opened = Input(input=str(tmp_path)).open(SIZE)
    assert {row["path"]: row["label"] for part in opened.parts for row in part.rows} == names
    assert {row["patient"] for part in opened.parts for row in part.rows} == {None}


def test_class_folders_of_patients_keep_their_patients(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        (tmp_path / "sick" / patient).mkdir(parents=True)
        Image.fromarray(np.zeros((30, 30), np.uint8)).save(tmp_path / "sick" / patient / "1.png")
    (part,) = Input(input=str(tmp_path)).open(SIZE).parts
    assert [(row["patient"], row["label"]) for row in part.rows] == [("p1", "sick"), ("p2", "sick")]
