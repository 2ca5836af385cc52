"""The page about data shows every group, and says what goes with a class without being the disease."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_prepared

from raymed.data.prepared import Prepared
from raymed.evaluation.data_page import look_at
from raymed.evaluation.sides import lean


def with_columns(prepared: Prepared, **columns: list[object]) -> Prepared:
    index = prepared.index
    for name, values in columns.items():
        place = index.schema.get_field_index(name)
        index = index.set_column(place, index.schema.field(place), pa.array(values, index.schema.field(place).type))
    return replace(prepared, index=index)


def classes(prepared: Prepared) -> list[str]:
    return [prepared.labels.names[label] for label in prepared.index["label"].to_pylist()]


def test_every_source_and_class_is_shown_with_pictures_of_as_many_patients_as_there_are(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "data", source=lambda patient, label: ("east", "west")[patient // 4 % 2])
    page = look_at(prepared)
    assert {(group.source, group.name) for group in page.groups} == {
        (source, name) for source in ("east", "west") for name in set(classes(prepared))
    }
    assert sum(group.records for group in page.groups) == prepared.index.num_rows
    for group in page.groups:
        assert len({each.text.split(",")[0] for each in group.pictures}) == min(group.patients, 12)
        assert sum(group.histogram) == pytest.approx(1)
    text = page.render()
    assert text.count("<img") == sum(len(group.pictures) for group in page.groups)
    assert "<script" not in text and "http" not in text


def test_what_comes_from_data_is_escaped_and_patients_left_out_are_named(prepared: Prepared) -> None:
    manifest = replace(prepared.manifest, left_out={"<b>p9</b>": "an empty folder"}, notes=["<i>note</i>"], passed_over=3)
    text = look_at(replace(prepared, manifest=manifest)).render()
    assert "&lt;b&gt;p9&lt;/b&gt;: an empty folder" in text and "&lt;i&gt;note&lt;/i&gt;" in text
    assert "3 files were not asked for" in text


def test_a_scanner_that_goes_with_a_class_is_said(prepared: Prepared) -> None:
    names = classes(prepared)
    first = names[0]
    spacing: list[object] = [0.6 if name == first else 0.9 for name in names]
    notes = look_at(with_columns(prepared, pixel_spacing=spacing)).notes
    assert any(f"pixel spacing alone tells {first}" in note and "the scanner" in note for note in notes)
    alike: list[object] = [0.7 for _ in names]
    assert not any("pixel spacing" in note for note in look_at(with_columns(prepared, pixel_spacing=alike)).notes)


def test_a_class_that_comes_from_one_source_alone_is_said(tmp_path: Path) -> None:
    prepared = write_prepared(
        tmp_path / "data", source=lambda patient, label: "east" if label == 0 else ("east", "west")[patient // 4 % 2]
    )
    lonely = f"all of {prepared.labels.names[0]} are from east: a network may learn the source in place of the class"
    assert [note for note in look_at(prepared).notes if "all of" in note] == [lonely]


def test_patients_who_share_pictures_are_shown_side_by_side(prepared: Prepared) -> None:
    patients = prepared.index["patient"].to_pylist()
    one, other = patients[0], next(patient for patient in patients if patient != patients[0])
    hashes = [bytes([len(set(patients)) * row % 251] * 32) for row in range(len(patients))]
    twin = patients.index(other)
    hashes[twin] = hashes[1]
    manifest = replace(prepared.manifest, near_duplicates=[[one, other]])
    page = look_at(replace(with_columns(prepared, hash=hashes), manifest=manifest))
    positions = prepared.index["position"].to_pylist()
    assert [(a.text, b.text) for a, b in page.duplicates] == [
        (f"{one}, slice {positions[1]}", f"{other}, slice {positions[twin]}")
    ]


def test_a_mirrored_chest_leans_to_the_other_side() -> None:
    chest = np.full((100, 100, 1), 40, np.uint8)
    chest[50:80, 50:70] = 200  # the heart, on the patient's left
    assert lean(chest) > 0.1
    assert lean(chest[:, ::-1]) == pytest.approx(-lean(chest))
    assert lean(np.zeros((3, 2, 3), np.uint8)) == 0


def test_a_group_of_mirrored_chests_is_asked_about(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "data", patients=40, slices=4)  # class 2 is bright at the lower left
    names = prepared.labels.names
    asked = [note.split(",")[1].split(":")[0].strip() for note in look_at(prepared).notes if "mirrored" in note]
    assert asked == [names[2]]
