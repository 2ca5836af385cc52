"""A division that the source states is taken as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from raymed.data.prepare import expected_split
from raymed.data.publish import counts
from raymed.data.settings import PrepareSettings
from raymed.data.sources import Listing, SourceSettings, list_source
from raymed.data.sources.splits import split_named
from raymed.data.survey import survey
from raymed.errors import UserError

SPLITS = {"a": "train", "b": "val", "c": "test", "d": "train"}


def write_table(folder: Path, splits: dict[str, str]) -> Path:
    lines = ["image,patient_id,label,split"]
    for number, (patient, split) in enumerate(splits.items()):
        Image.new("L", (8, 8), 60 + number).save(folder / f"{patient}.png")
        lines.append(f"{patient}.png,{patient},{('normal', 'viral')[number % 2]},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def write_lines(path: Path, patients: str) -> None:
    lines = []
    for patient in patients:
        Image.new("L", (8, 8), 60).save(path.parent / f"{patient}.png")
        turns = [{"from": "human", "value": "<image>\n<cls>: 0|1."}, {"from": "gpt", "value": "1"}]
        lines.append(json.dumps({"image": f"{patient}.png", "conversations": turns, "patient_id": patient}))
    path.write_text("\n".join(lines) + "\n")


def stated(listing: Listing) -> dict[str, str]:
    return dict(listing.splits)


def test_a_column_of_splits_is_taken_as_it_is_whatever_the_weights(tmp_path: Path) -> None:
    path = write_table(tmp_path, SPLITS | {"b": "Validation", "d": "training"})
    settings = PrepareSettings()
    found = survey(path, settings, "lung")
    assert stated(found.listing) == SPLITS
    assert "as the source states them" in found.listing.notes[-1]
    assert expected_split(found, settings) == {"normal": {"test": 1, "train": 1}, "viral": {"train": 1, "val": 1}}
    assert stated(list_source(path, SourceSettings(splits=False))) == {}


def test_splits_of_some_patients_only_are_an_error(tmp_path: Path) -> None:
    path = write_table(tmp_path, SPLITS | {"c": ""})
    settings = PrepareSettings()
    with pytest.raises(UserError, match="states no split for 1 patients, for example c"):
        expected_split(survey(path, settings, "lung"), settings)


def test_a_patient_in_two_splits_and_an_unknown_split_are_errors_with_their_lines(tmp_path: Path) -> None:
    path = write_table(tmp_path, SPLITS)
    Image.new("L", (8, 8)).save(tmp_path / "a2.png")
    text = path.read_text()
    path.write_text(text + "a2.png,a,normal,test\n")
    with pytest.raises(UserError, match=r"labels\.csv:6: patient a is in test here and in train at .*labels\.csv:2: a leak"):
        list_source(path, SourceSettings())
    path.write_text(text + "a2.png,a,normal,fold-1\n")
    with pytest.raises(UserError, match=r"labels\.csv:6: split 'fold-1' is none of train"):
        list_source(path, SourceSettings())


def test_files_and_data_sets_called_after_splits_are_those(tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    for name, patients in (("train", "ad"), ("val", "b"), ("test", "c")):
        write_lines(folder / f"{name}.jsonl", patients)
    assert stated(list_source(folder, SourceSettings())) == SPLITS
    meta = {f"chest_{name}": {"root": "lines", "annotation": f"lines/{name}.jsonl"} for name in ("train", "val", "test")}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert stated(list_source(tmp_path / "meta.json", SourceSettings())) == SPLITS
    assert stated(list_source(folder / "train.jsonl", SourceSettings())) == {}, "one file alone states nothing"
    write_lines(tmp_path / "extra.jsonl", "e")
    (tmp_path / "more.json").write_text(json.dumps(meta | {"extra": {"root": ".", "annotation": "extra.jsonl"}}))
    with pytest.raises(UserError, match=r"these are not: extra\. Name each after its split"):
        list_source(tmp_path / "more.json", SourceSettings())
    assert stated(list_source(tmp_path / "more.json", SourceSettings(splits=False))) == {}
    write_lines(folder / "test.jsonl", "ca")
    with pytest.raises(UserError, match=r"test\.jsonl:2: patient a is in test here and in train at .*train\.jsonl:1"):
        list_source(tmp_path / "meta.json", SourceSettings())


@pytest.mark.parametrize(
    ("name", "split"), [("chest_train", "train"), ("VALID", "val"), ("a-dev", "val"), ("contest", None)]
)
def test_names_end_in_their_split(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_classes_are_counted_in_the_order_of_the_label_table() -> None:
    pairs = [("viral", "train"), ("bacterial", "val"), ("unlabelled", "unsplit"), ("normal", "train"), ("viral", "train")]
    counted = counts(pairs, ("normal", "bacterial", "viral"))
    assert list(counted.items()) == [
        ("normal", {"train": 1}), ("bacterial", {"val": 1}), ("viral", {"train": 2}), ("unlabelled", {"unsplit": 1}),
    ]  # fmt: skip
