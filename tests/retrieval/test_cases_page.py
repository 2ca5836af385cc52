"""The page of similar cases shows pictures and distances, and names nobody."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image

from raymed.data.image import ImageSettings
from raymed.retrieval.features import FeatureManifest, Features
from raymed.retrieval.gallery import Gallery
from raymed.retrieval.settings import RetrievalSettings
from raymed.retrieval.sheet import write_cases


def features(root: Path, patients: list[str | None]) -> Features:
    """A picture each, in folders that are called like their patients."""
    made = FeatureManifest(
        "k", "m", "d", {}, [1], 2, asdict(ImageSettings(16)), {"kind": "classes", "root": str(root)}, {}, []
    )
    paths = [f"{patient or 'nobody'}-{row}.png" for row, patient in enumerate(patients)]
    for row, path in enumerate(paths):
        Image.new("L", (16, 16), 20 * row).save(root / path)
    vectors = np.array([[row, 1.0] for row in range(len(patients))], dtype=np.float32)
    ids, owners, labels = (np.array(each, dtype=object) for each in (paths, patients, ["<viral>"] * len(paths)))
    return Features("made", made, ids, owners, labels, labels, ids, np.full(len(paths), -1), {1: vectors})


def test_pictures_and_distances_are_shown_and_patients_have_numbers(tmp_path: Path) -> None:
    gallery = features(tmp_path, ["Li Ming", "Li Ming", "Wang Fang", None])
    asked = replace(gallery.take(np.array([2])), ids=np.array(["asked"], dtype=object))
    neighbours = Gallery(gallery, 1, RetrievalSettings(exclude="none")).search(asked, 4)
    path = write_cases(tmp_path / "cases.html", asked, gallery, neighbours)
    page = path.read_text("utf-8")
    assert page.count('<img src="data:image/') == 5 and "not found" not in page
    assert not any(name in page for name in ("Li Ming", "Wang Fang", ".png"))
    assert page.count("patient 1") >= 2 and page.count("patient 2") >= 2 and "patient not known" in page
    assert "0.0000" in page and "&lt;viral&gt;" in page and "<viral>" not in page
    (tmp_path / "Wang Fang-2.png").unlink()
    again = write_cases(tmp_path / "cases.html", asked, gallery, neighbours).read_text("utf-8")
    assert again.count("picture not found any more") == 2, "the one that was asked about is gone, and is in the gallery"
