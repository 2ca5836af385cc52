import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymed.data.sources import SourceSettings
from raymed.data.survey import survey
from raymed.errors import UserError


def source(folder: Path, lines: list[str], header: str = "image,patient_id,label") -> Path:
    """A CSV and the pictures it names; two labels for a patient, or a picture listed twice, are easy to write here."""
    for number, line in enumerate(lines):
        pixels = np.full((8, 8), number, np.uint8)
        Image.fromarray(pixels).save(folder / line.split(",")[0])
    path = folder / "labels.csv"
    path.write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return path


def test_counts_are_of_patients_and_of_slices(tmp_path: Path):
    path = source(tmp_path, ["a.png,p1,normal", "b.png,p1,normal", "c.png,p2,viral"])
    found = survey(path, SourceSettings(), "lung")
    assert found.patients == {"normal": 1, "viral": 1}
    assert found.slices == 3


def test_every_unknown_label_is_named_at_once_with_its_count(tmp_path: Path):
    path = source(tmp_path, ["a.png,p1,cap", "b.png,p1,cap", "c.png,p2,flu", "d.png,p3,normal"])
    with pytest.raises(UserError, match=r"'cap' \(2\), 'flu' \(1\)"):
        survey(path, SourceSettings(), "lung")


def test_ignored_labels_are_left_out_and_counted(tmp_path: Path):
    table = tmp_path / "table.yaml"
    table.write_text("classes: [{code: '0', name: normal}, {code: '1', name: viral}]\nignore: [cap]\n", "utf-8")
    path = source(tmp_path, ["a.png,p1,cap", "b.png,p1,cap", "d.png,p3,normal"])
    found = survey(path, SourceSettings(), str(table))
    assert [study.patient for study in found.studies] == ["p3"]
    assert found.ignored == {"cap": 2}


def test_a_source_of_ignored_labels_only_is_an_error(tmp_path: Path):
    table = tmp_path / "table.yaml"
    table.write_text("classes: [{code: '0', name: normal}, {code: '1', name: viral}]\nignore: [cap]\n", "utf-8")
    with pytest.raises(UserError, match="ignore list: cap"):
        survey(source(tmp_path, ["a.png,p1,cap"]), SourceSettings(), str(table))


def test_a_patient_with_two_labels_is_an_error_that_names_patient_and_lines(tmp_path: Path):
    path = source(tmp_path, ["a.png,p1,normal", "b.png,p1,viral", "c.png,p2,viral"])
    with pytest.raises(
        UserError, match=r"1 patients have two labels: p1: normal \(labels.csv:2\) and viral \(labels.csv:3\)"
    ):
        survey(path, SourceSettings(), "lung")


def test_two_spellings_of_one_class_are_one_label(tmp_path: Path):
    path = source(tmp_path, ["a.png,p1,normal", "b.png,p2,0", "c.png,p3, Normal"])
    assert survey(path, SourceSettings(), "lung").patients == {"normal": 3}


def test_a_study_id_of_two_patients_is_an_error_that_names_both(tmp_path: Path):
    path = source(tmp_path, ["a.png,p1,normal,ct7", "b.png,p2,normal,ct7"], "image,patient_id,label,study")
    with pytest.raises(UserError, match=r"ct7.*p1.*p2"):
        survey(path, SourceSettings(), "lung")


def test_a_picture_listed_twice_is_an_error(tmp_path: Path):
    path = source(tmp_path, ["a.png,p1,normal", "a.png,p2,normal"])
    with pytest.raises(UserError, match=r"a\.png"):
        survey(path, SourceSettings(), "lung")


def conversations(folder: Path, *questions: str) -> Path:
    """A patient and a picture for each question; every answer is 1."""
    lines = []
    for number, question in enumerate(questions):
        Image.new("L", (8, 8), 60).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "1"}]
        lines.append(json.dumps({"image": f"{number}.png", "conversations": turns, "patient_id": f"p{number}"}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "train.jsonl"


def test_lines_that_ask_for_no_label_or_about_no_picture_are_refused_by_line_and_not_made_unlabelled(tmp_path: Path):
    path = conversations(tmp_path, "<image>\n<cls>: 0|1.", "<image>\nDescribe.", "<cls>: 0|1.")
    found = survey(path, SourceSettings(), "lung")
    assert found.patients == {"bacterial": 1}
    assert [(refusal.patient, refusal.where, refusal.reason) for refusal in found.listing.refusals] == [
        ("p1", "train.jsonl:2", "no <cls> question, so no label"),
        ("p2", "train.jsonl:3", "no <image> mark in a question"),
    ]
    assert survey(path, SourceSettings(labelled=False), "lung").patients == {"unlabelled": 3}, "prediction needs neither"
    with pytest.raises(UserError, match=r"no line can be learned from:\ntrain\.jsonl:1: no <image>"):
        survey(conversations(tmp_path, "<cls>: 0|1.", "<cls>: 0|1."), SourceSettings(), "lung")


def test_prompts_that_declare_other_classes_than_the_label_table_are_an_error_that_shows_both(tmp_path: Path):
    path = conversations(tmp_path, "<image>\n<cls>: 0|1|2|3.", "<image>\n<cls>: 1|benign.")
    shown = r"classes \(0 normal, 1 bacterial, 2 viral, 3 pneumocystis\): 1\|benign \(1 lines, such as train\.jsonl:2\)"
    with pytest.raises(UserError, match=shown):
        survey(path, SourceSettings(), "lung")


def test_prompts_that_declare_some_of_the_classes_are_told_of_and_kept(tmp_path: Path):
    (note,) = survey(conversations(tmp_path, "<image>\n<cls>: 0|1."), SourceSettings(), "lung").listing.notes
    assert "0|1 (1 lines, such as train.jsonl:1). A model is asked to choose from all" in note
    assert not survey(conversations(tmp_path, "<image>\n<cls>: 1|0|病毒|3."), SourceSettings(), "lung").listing.notes
