"""Series that are out of order, and unusual numbers of slices, are told of before anything is trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_prepared

from raymed.data import series
from raymed.data.duplicates import perceptual_hash
from raymed.data.phantom import PhantomSettings, phantom_patient
from raymed.data.prepared import Prepared


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """Hashes of a phantom's slices from apex to base."""
    _, slices = phantom_patient(PhantomSettings(size=64, slices=(24, 24)), 0)
    hashes = [code for each in slices if (code := perceptual_hash(each[..., None])) is not None]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)


def test_a_body_s_slices_follow_one_another_and_a_jumbled_series_does_not(codes: np.ndarray) -> None:
    assert series.follows(codes)
    assert not series.follows(codes[np.random.default_rng(0).permutation(len(codes))])


def with_series(prepared: Prepared, codes: np.ndarray) -> Prepared:
    """The prepared data as if their first rows were a series of these slices."""
    table = prepared.index.slice(0, len(codes))
    columns = {
        "patient": pa.array(["a"] * (len(codes) - 2) + ["b", "b"], table.schema.field("patient").type),
        "study": pa.array(["a"] * (len(codes) - 2) + ["b", "b"], table.schema.field("study").type),
        "position": pa.array(range(len(codes)), table.schema.field("position").type),
        "hash": pa.array([code.tobytes() for code in codes], table.schema.field("hash").type),
    }
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return Prepared(prepared.folder, prepared.manifest, table)


def test_what_is_unusual_is_told_and_what_is_not_is_not(codes: np.ndarray, tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "data")
    usual = with_series(prepared, codes)
    first, histogram, unusual = series.report(usual)
    assert first == f"slices a patient: median {len(codes) // 2} (2 to {len(codes) - 2})"
    most = len(codes) - 2
    width = -(-(most - 1) // 8)
    last = 2 + (most - 2) // width * width
    assert histogram == f"patients by number of slices: 2-{1 + width}: 1, {last}-{last + width - 1}: 1"
    assert unusual.startswith("unusual numbers of slices: b (2)")
    (*_, warning) = series.report(with_series(prepared, codes[np.random.default_rng(0).permutation(len(codes))]))
    assert warning.startswith("warning: in 1 of 1 series, such as a, ") and "column `position`" in warning
