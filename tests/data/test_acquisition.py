"""A patient whose pictures are of another kind or size than those trained on is told apart, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_prepared

from raymed.data.acquisition import Acquisition
from raymed.data.sources import Slice
from raymed.data.sources.listing import Geometry

CT = Acquisition({"CT": 100}, {"pixel_spacing": (0.6, 0.9), "field_of_view": (300.0, 450.0)})
XRAY = Acquisition({"CR": 40, "DX": 60})
PICTURES = Acquisition({"picture": 10})


def piece(modality: str | None, **geometry: float) -> Slice:
    return Slice("a", "a", None, 0, "a", geometry=Geometry(**geometry), modality=modality)


@pytest.mark.parametrize(
    ("trained", "asked", "says"),
    [
        (XRAY, piece("CT"), "CT, and the model was trained on CR, DX, whose grey values are no windowed Hounsfield units"),
        (PICTURES, piece("CT"), "CT, and the model was trained on picture, whose grey values are no windowed"),
        (CT, piece(None), "picture, and the model was trained on CT, whose grey values are windowed Hounsfield units"),
        (CT, piece("CT", pixel_spacing=2.0), "pixel spacing above the 0.6 to 0.9 mm that the model was trained on"),
        (CT, piece("CT", field_of_view=150.0), "field of view below the 300 to 450 mm that the model was trained on"),
    ],
)
def test_another_modality_or_size_is_told(trained: Acquisition, asked: Slice, says: str) -> None:
    (found,) = trained.unlike(Acquisition.of_slices([asked]))
    assert found.startswith(says)


@pytest.mark.parametrize(
    ("trained", "asked"),
    [
        (XRAY, piece("CR")),
        (PICTURES, piece(None)),
        (CT, piece("CT", pixel_spacing=0.9, field_of_view=450.0)),
        (CT, piece("CT", pixel_spacing=0.5)),
        (CT, piece("CT")),
        (Acquisition(), piece("CT")),
    ],
    ids=["X-ray", "picture", "the largest", "a little smaller", "of unknown size", "model of which nothing is known"],
)
def test_what_is_alike_is_not_told(trained: Acquisition, asked: Slice) -> None:
    assert trained.unlike(Acquisition.of_slices([asked])) == ()


def test_the_window_is_claimed_only_where_it_was_applied() -> None:
    assert CT.window("lung") == "window lung"
    assert "no window of ours" in PICTURES.window("lung") and "lung" not in PICTURES.window("lung")
    assert "window lung over the CT, the other pictures" in Acquisition({"CT": 1, "picture": 1}).window("lung")


def test_prepared_rows_give_their_kinds_and_sizes(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", patients=8, slices=1)
    assert Acquisition.of(data, np.arange(4)) == Acquisition({"picture": 4}, {})
