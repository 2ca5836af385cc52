"""Options of computing features that cannot be followed are refused, not passed over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from raymed.data.prepared import Prepared
from raymed.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import extract_features as job


def pictures(source: str, **settings: Any) -> object:
    options = job.ExtractFeatures(model="VIT", input=source, out="OUT", **settings)
    return options.pictures(None)  # type: ignore[arg-type]  # the pictures are refused before the ViT is looked at


def test_how_pictures_are_read_is_settled_where_they_are_prepared(prepared: Prepared) -> None:
    with pytest.raises(UserError, match=r"--size, --window cannot be followed: .* as they were prepared"):
        pictures(prepared.folder.uri, size=56, window="mediastinum")


def test_pictures_that_are_not_prepared_have_no_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--split cannot be followed: .* without splits"):
        pictures(str(tmp_path), split="test")
