"""Sources: every layout lists the right patients in the right order, and bad input is named, never guessed or dropped."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raymed.data.choices import parse_choices
from raymed.data.image import ImageSettings
from raymed.data.sources import Columns, Listing, Refusal, SourceSettings, list_source, load_study
from raymed.data.sources.listing import by_reason, natural_key
from raymed.errors import UserError

REAL = Path(os.environ.get("RAYMED_REAL_DATA", "/nonexistent"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="RAYMED_REAL_DATA is not set")


def picture(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)
    return path


def keys(listing: Listing) -> list[tuple[str, str, str | None]]:
    return [(study.patient, study.study, study.label) for study in listing.studies]


def paths(listing: Listing) -> list[str]:
    return [piece.path for study in listing.studies for piece in study.slices]


# folders


def test_class_folders_give_patients_in_natural_slice_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        picture(tmp_path / "viral" / "P2" / f"s{number}.png")
    picture(tmp_path / "normal" / "P10" / "a.PNG")
    picture(tmp_path / "normal" / "P10" / ".hidden.png")
    listing = list_source(tmp_path, SourceSettings())
    assert listing.format == "folders"
    assert keys(listing) == [("P2", "P2", "viral"), ("P10", "P10", "normal")]
    assert [piece.id for piece in listing.studies[0].slices] == [f"viral/P2/s{number}.png" for number in (1, 2, 10)]
    assert [piece.position for piece in listing.studies[0].slices] == [0, 1, 2]


def test_a_level_below_the_patient_is_a_study(tmp_path: Path) -> None:
    picture(tmp_path / "viral" / "P1" / "day1" / "a.png")
    picture(tmp_path / "viral" / "P1" / "day2" / "a.png")
    assert keys(list_source(tmp_path, SourceSettings())) == [("P1", "P1/day1", "viral"), ("P1", "P1/day2", "viral")]


def test_files_that_are_no_pictures_are_stated(tmp_path: Path) -> None:
    picture(tmp_path / "viral" / "P1" / "a.png")
    (tmp_path / "viral" / "notes.txt").write_text("x")
    listing = list_source(tmp_path, SourceSettings())
    assert not listing.refusals and "viral/notes.txt" in listing.notes[0]


def test_pictures_directly_in_a_class_need_to_be_told_whose_they_are(tmp_path: Path) -> None:
    for name in ("P1_01", "P1_02", "P2_01"):
        picture(tmp_path / "viral" / f"{name}.png")
    with pytest.raises(UserError, match=r"patient.regex"):
        list_source(tmp_path, SourceSettings())
    listing = list_source(tmp_path, SourceSettings(patient_regex=r"([^/_]+)_\d+[.]"))
    assert keys(listing) == [("P1", "P1", "viral"), ("P2", "P2", "viral")]
    each = list_source(tmp_path, SourceSettings(patient_regex="([^/]+)[.]"))
    assert len(each.studies) == 3
    with pytest.raises(UserError, match="P2_01"):
        list_source(tmp_path, SourceSettings(patient_regex="(P1)_"))


@pytest.mark.parametrize("regex", ["(", "P1"])
def test_a_regex_that_cannot_name_a_patient_is_an_error(regex: str) -> None:
    with pytest.raises(UserError, match=r"patient.regex"):
        SourceSettings(patient_regex=regex)


def test_without_labels_a_folder_a_patient_folder_and_a_single_picture_can_be_listed(tmp_path: Path) -> None:
    unlabelled = SourceSettings(labelled=False)
    one = picture(tmp_path / "many" / "P1" / "a.png")
    picture(tmp_path / "many" / "P2" / "a.png")
    assert keys(list_source(tmp_path / "many", unlabelled)) == [("P1", "P1", None), ("P2", "P2", None)]
    assert keys(list_source(tmp_path / "many" / "P1", unlabelled)) == [("P1", "P1", None)]
    assert keys(list_source(one, unlabelled)) == [("a", "a", None)]
    with pytest.raises(UserError, match="labelled"):
        list_source(tmp_path / "many" / "P1", SourceSettings())
    with pytest.raises(UserError, match="label"):
        list_source(one, SourceSettings())


def test_a_folder_of_loose_pictures_says_that_it_counts_as_one_patient(tmp_path: Path) -> None:
    unlabelled = SourceSettings(labelled=False)
    for name in ("P1", "P2"):
        picture(tmp_path / "xrays" / f"{name}.png")
    listing = list_source(tmp_path / "xrays", unlabelled)
    assert keys(listing) == [("xrays", "xrays", None)]
    (note,) = listing.notes
    assert "2 pictures" in note and "one patient, xrays" in note
    apart = list_source(tmp_path / "xrays", SourceSettings(labelled=False, patient_regex=note.split("'")[1]))
    assert [study.patient for study in apart.studies] == ["P1", "P2"] and not apart.notes


@pytest.mark.parametrize("path", [b"\xd5\xc5\xc8\xfd/empty/", b"P1/\xd5\xc5.png", b"P1/\xd5\xc5.txt"])
def test_a_name_that_is_not_utf8_is_an_error_before_any_work(tmp_path: Path, path: bytes) -> None:
    picture(tmp_path / "P1" / "a.png")
    strange = tmp_path / os.fsdecode(path)
    strange.mkdir(parents=True) if path.endswith(b"/") else strange.write_bytes(b"x")
    with pytest.raises(UserError, match=r"xd5\\xc5.*not UTF-8") as caught:
        list_source(tmp_path, SourceSettings(labelled=False))
    str(caught.value).encode()  # it can be printed


def test_class_folders_are_not_taken_for_patients_when_predicting(tmp_path: Path) -> None:
    picture(tmp_path / "viral" / "P1" / "scan" / "a.png")
    with pytest.raises(UserError, match="labelled true"):
        list_source(tmp_path, SourceSettings(labelled=False))


def test_links_out_of_the_source_are_refused_not_followed(tmp_path: Path) -> None:
    outside = picture(tmp_path / "outside" / "P9" / "a.png")
    picture(tmp_path / "data" / "viral" / "P1" / "a.png")
    (tmp_path / "data" / "viral" / "P1" / "b.png").symlink_to(outside)
    (tmp_path / "data" / "viral" / "P9").symlink_to(outside.parent)
    (tmp_path / "data" / "viral" / "P1" / "c.png").symlink_to("nowhere.png")
    (tmp_path / "data" / "viral" / "P1" / "d.png").symlink_to("a.png")
    (tmp_path / "data" / "viral" / "P1" / "e.png").symlink_to("e.png")  # a circle
    listing = list_source(tmp_path / "data", SourceSettings())
    assert paths(listing) == ["viral/P1/a.png", "viral/P1/d.png"]
    refused = [f"viral/{name}" for name in ("P1/b.png", "P1/c.png", "P1/e.png", "P9")]
    assert sorted(refusal.id for refusal in listing.refusals) == refused


def test_a_cell_with_a_nul_character_is_no_patient_of_that_name(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image,patient_id,label\na.png,P\0 1,viral\n")
    with pytest.raises(UserError, match=r"list.csv:2: holds a NUL character"):
        list_source(tmp_path / "list.csv", SourceSettings())


@pytest.mark.parametrize("content", [[], ["readme.txt"], [".hidden.png"]])
def test_an_empty_source_is_an_error(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match="no images"):
        list_source(tmp_path, SourceSettings())
    with pytest.raises(UserError, match="no such"):
        list_source(tmp_path / "nowhere", SourceSettings())


def test_a_file_that_is_no_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match="not a picture"):
        list_source(tmp_path / "a.docx", SourceSettings())


def test_fingerprint_changes_with_files_labels_and_slices_only(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return next(s.fingerprint for s in list_source(tmp_path, SourceSettings()).studies if s.patient == "P1")

    first = picture(tmp_path / "viral" / "P1" / "a.png")
    seen = [fingerprint()]
    picture(tmp_path / "viral" / "P2" / "a.png")
    assert fingerprint() == seen[0]
    picture(tmp_path / "viral" / "P1" / "b.png")
    seen.append(fingerprint())
    os.utime(first, ns=(1, 1))
    seen.append(fingerprint())
    (tmp_path / "viral").rename(tmp_path / "normal")
    seen.append(fingerprint())
    assert len(set(seen)) == 4


def test_bad_files_become_refusals_and_their_neighbours_are_loaded(tmp_path: Path) -> None:
    picture(tmp_path / "viral" / "P1" / "a.png", 77)
    (tmp_path / "viral" / "P1" / "b.png").write_bytes(b"")
    (tmp_path / "viral" / "P1" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    listing = list_source(tmp_path, SourceSettings())
    root, study, image = pickle.loads(pickle.dumps((listing.root, listing.studies[0], ImageSettings(size=8))))
    picture(tmp_path / "viral" / "P1" / "d.png").unlink()
    loaded = load_study(root, study, image)
    assert [piece.id for piece, _ in loaded] == [piece.id for piece in study.slices]
    good, empty, broken = (result for _, result in loaded)
    assert isinstance(good, np.ndarray) and good.shape == (8, 8, 1) and (good == 77).all()
    assert isinstance(empty, Refusal) and "empty" in empty.reason and empty.patient == "P1"
    assert isinstance(broken, Refusal) and broken.id == "viral/P1/c.png"
    (tmp_path / "viral" / "P1" / "a.png").unlink()
    assert "does not exist" in load_study(root, study, image)[0][1].reason


@given(st.lists(st.text(st.sampled_from("a1B02_é٣²"), max_size=6), max_size=8))
@settings(deadline=None)
def test_natural_order_never_fails_and_is_total(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


# CSV


def table(tmp_path: Path, text: str, *names: str) -> Path:
    for name in names:
        picture(tmp_path / name)
    path = tmp_path / "labels.csv"
    path.write_text(text, "utf-8")
    return path


def test_csv_orders_slices_by_their_column_and_refuses_missing_files(tmp_path: Path) -> None:
    text = "image,patient_id,label,slice_index,source\na.png,P1,viral,20,X\nb.png,P1,viral,3,X\nc.png,P1,viral,1,X\n"
    listing = list_source(table(tmp_path, text, "a.png", "b.png").parent, SourceSettings())
    assert listing.format == "csv" and keys(listing) == [("P1", "P1", "viral")]
    assert paths(listing) == ["b.png", "a.png"] and listing.studies[0].source == "X"
    assert listing.studies[0].slices[0].where == "labels.csv:3"
    assert [(r.id, r.where, r.patient) for r in listing.refusals] == [("c.png", "labels.csv:4", "P1")]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_as_spreadsheets_save_it(tmp_path: Path, delimiter: str, mark: str) -> None:
    text = mark + 'Image;Patient;Label\r\n"a.png";P1;病毒\r\n\r\n'.replace(";", delimiter)
    assert keys(list_source(table(tmp_path, text, "a.png"), SourceSettings())) == [("P1", "P1", "病毒")]


def test_csv_texts_may_hold_other_line_separators(tmp_path: Path) -> None:
    text = "image,patient_id,label,note\na.png,P1,viral,left\x0bright\u2028both\nb.png,P2,,\n"
    listing = list_source(table(tmp_path, text, "a.png"), SourceSettings())
    assert keys(listing) == [("P1", "P1", "viral")]
    assert [refusal.where for refusal in listing.refusals] == ["labels.csv:3"]


def test_csv_columns_can_be_named_and_studies_kept_apart(tmp_path: Path) -> None:
    text = "bild,who,label,visit\na.png,P1,viral,v1\nb.png,P1,viral,v2\n"
    path = table(tmp_path, text, "a.png", "b.png")
    columns = Columns(image="bild", patient_id="who", study="visit")
    assert keys(list_source(path, SourceSettings(columns=columns))) == [("P1", "v1", "viral"), ("P1", "v2", "viral")]
    with pytest.raises(UserError, match=r"labels.csv:1: no column 'image'.*bild, who, label, visit.*columns.image"):
        list_source(path, SourceSettings())
    with pytest.raises(UserError, match="no column 'nope'"):
        list_source(path, SourceSettings(columns=Columns(image="bild", patient_id="who", study="nope")))


def test_csv_with_two_labels_for_one_patient_shows_both(tmp_path: Path) -> None:
    text = "image,patient_id,label\na.png,P1,viral\nb.png,P1,normal\nc.png,P2,\n"
    listing = list_source(table(tmp_path, text, "a.png", "b.png", "c.png"), SourceSettings())
    assert keys(listing) == [("P1", "P1", "normal"), ("P1", "P1", "viral"), ("P2", "P2", None)]


def test_csv_without_labels_is_read_for_prediction(tmp_path: Path) -> None:
    path = table(tmp_path, "image,patient_id\na.png,P1\n", "a.png")
    with pytest.raises(UserError, match="labelled false"):
        list_source(path, SourceSettings())
    assert keys(list_source(path, SourceSettings(labelled=False))) == [("P1", "P1", None)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "is empty"),
        ("image,patient_id,label\n", "no lines"),
        ("image,patient_id,label\na.png,P1\n", "labels.csv:2: 2 cells"),
        ("image,patient_id,label\n,P1,viral\n", "labels.csv:2: image is empty"),
        ("image,patient_id,label\na.png,,viral\n", "labels.csv:2: patient_id is empty"),
        ("image,patient_id,label\na.png,P1,viral\na.png,P2,viral\n", "labels.csv:3: a.png stands on line 2"),
        ("image,patient_id,label\n/etc/a.png,P1,viral\n", "labels.csv:2: absolute path"),
        ("image,patient_id,label\nC:\\data\\a.png,P1,viral\n", "labels.csv:2: absolute path"),
        ("image,patient_id,label\n../a.png,P1,viral\n", "labels.csv:2: the path '../a.png' leaves"),
        ("image,patient_id,label\nx/..\\../a.png,P1,viral\n", "labels.csv:2: the path"),
        ("image,patient_id,label,position\na.png,P1,viral,first\n", "labels.csv:2: the slice order 'first'"),
        ("image,patient_id,label,position\na.png,P1,viral,nan\n", "labels.csv:2: the slice order 'nan'"),
        ('image,patient_id,label\n"a.png,P1,viral\n', "not a valid CSV"),
        ("image,image,label\na.png,P1,viral\n", "twice in the header"),
        ("image,patient_id,label,source\na.png,P1,viral,X\nb.png,P1,viral,Y\n", "several sources: X, Y"),
    ],
)
def test_wrong_csv_is_an_error_with_file_and_line(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        list_source(table(tmp_path, text, "a.png", "b.png"), SourceSettings())
    assert named in str(caught.value) and str(tmp_path) in str(caught.value)


def test_empty_columns_that_a_spreadsheet_left_at_the_end_mean_nothing(tmp_path: Path) -> None:
    path = table(tmp_path, "image,patient_id,label,,\r\na.png,P1,viral,,\r\n", "a.png")
    assert keys(list_source(path, SourceSettings())) == [("P1", "P1", "viral")]


def test_csv_that_is_not_utf8_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("image,patient_id,label\na.png,P1,病毒\n".encode("gbk"))
    with pytest.raises(UserError, match=r"labels.csv:2: not UTF-8"):
        list_source(tmp_path, SourceSettings())


def test_csv_path_through_a_link_out_of_the_root_is_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "outside" / "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "outside")
    path = table(tmp_path / "data", "image,patient_id,label\nlink/a.png,P1,viral\n")
    with pytest.raises(UserError, match="through a symbolic link out of the folder"):
        list_source(path, SourceSettings())
    inside = table(tmp_path, "image,patient_id,label\noutside/a.png,P1,viral\n")
    moved = inside.rename(tmp_path / "data" / "labels.csv")
    assert len(list_source(moved, SourceSettings(root=str(tmp_path))).studies) == 1


def test_a_table_about_patients_beside_their_folders_says_how_to_pass_over_it(tmp_path: Path) -> None:
    picture(tmp_path / "P1" / "a.png")
    (tmp_path / "predictions.csv").write_text("patient_id,decision\nP1,viral\n")
    with pytest.raises(UserError, match=r"no column 'image'.*if predictions\.csv names no pictures.*format folders"):
        list_source(tmp_path, SourceSettings(labelled=False))
    assert keys(list_source(tmp_path, SourceSettings(labelled=False, format="folders"))) == [("P1", "P1", None)]


def test_two_lists_in_one_folder_are_not_chosen_between(tmp_path: Path) -> None:
    path = table(tmp_path, "image,patient_id,label\na.png,P1,viral\n", "a.png")
    (tmp_path / "notes.csv").write_text("ward,beds\n3,12\n")
    assert list_source(tmp_path, SourceSettings()).format == "csv"
    (tmp_path / "train.csv").write_text(path.read_text())
    with pytest.raises(UserError, match=r"labels.csv, train.csv"):
        list_source(tmp_path, SourceSettings())


def test_a_volume_named_in_a_csv_is_refused_not_cut_to_one_slice(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    listing = list_source(table(tmp_path, "image,patient_id,label\na.nii.gz,P1,viral\n"), SourceSettings())
    result = load_study(listing.root, listing.studies[0], ImageSettings(size=8))[0][1]
    assert isinstance(result, Refusal) and "volume" in result.reason


# conversations


def line(image: object = "a.png", answer: str = "1", question: str = "<image>\n<cls>: 0|1.", **more: object) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"image": image, "conversations": turns, **more}, ensure_ascii=False)


def conversation(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("<image>\n<cls>: 0|1|2|3.", ["0", "1", "2", "3"]),
        ("Note: look closely. <cls>：是 | 否。谢谢", ["是", "否"]),
        ("<cls>:A|B", ["A", "B"]),
        ("Which class? <cls>: 0|1|2|3.<image>", ["0", "1", "2", "3"]),
        ("<cls>: no|yes<image>", ["no", "yes"]),
        ("<cls>: 0|1.请只回答编号", ["0", "1"]),
        ("<cls>: 0.5|1. Which?", ["0.5", "1"]),
        ("<cls>: 3|1|2\nmore: a|b.", ["3", "1", "2"]),
        ("What is this?", None),
        ("choose: 0|1.", None),
    ],
)
def test_choices_are_read_after_the_mark_only_trimmed_and_in_order(text: str, choices: list[str] | None) -> None:
    assert parse_choices(text) == choices


@pytest.mark.parametrize("text", ["<cls>:", "<cls>: 0.", "<cls>: 0|.", "<cls>: 0|1|0."])
def test_choices_that_are_no_choice_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match="choices"):
        parse_choices(text)


words = st.text(st.characters(exclude_characters="|.。\n\r:：", exclude_categories=["Z", "C"]), min_size=1, max_size=4)


@given(st.lists(words, min_size=2, max_size=6, unique=True), st.sampled_from([": ", ":", "：", "： "]), st.text(max_size=5))
@settings(deadline=None)
def test_written_choices_are_read_back(choices: list[str], colon: str, before: str) -> None:
    assert parse_choices(f"{before.replace('<', '')}<cls>{colon}{' | '.join(choices)}.") == choices


def test_jsonl_gives_patients_labels_and_turns(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    path = conversation(tmp_path, line(patient_id="P1"), "", line(["b.png"], "0", patient=7), line("c.png", patient_id="P1"))
    listing = list_source(path, SourceSettings())
    assert listing.format == "conversations" and keys(listing) == [("7", "7", "0"), ("P1", "P1", "1")]
    first = listing.studies[1].slices[0]
    assert [(turn.role, turn.text) for turn in first.messages] == [("human", "<image>\n<cls>: 0|1."), ("gpt", "1")]
    assert [(refusal.id, refusal.where) for refusal in listing.refusals] == [("c.png", "train.jsonl:4")]
    assert keys(list_source(tmp_path, SourceSettings(labelled=False)))[0] == ("7", "7", None)


def test_meta_file_names_its_sets_and_paths_stay_in_their_root(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "train" / "P1_1.png")
    (tmp_path / "ann").mkdir()
    conversation(tmp_path / "ann", line("train/P1_1.png"))
    entry = {"root": "images", "annotation": "ann/train.jsonl", "data_augment": False, "repeat_time": 2, "length": 10}
    (tmp_path / "meta.json").write_text(json.dumps({"toy": entry}))
    regex = SourceSettings(patient_regex=r"([^/_]+)_\d")
    listing = list_source(tmp_path / "meta.json", regex)
    assert paths(listing) == ["images/train/P1_1.png"] and listing.studies[0].source == "toy"
    assert any("repeat_time=2" in note for note in listing.notes) and any("length" in note for note in listing.notes)
    (tmp_path / "configs").mkdir()
    moved = (tmp_path / "meta.json").rename(tmp_path / "configs" / "meta.json")
    with pytest.raises(UserError, match=r"--source\.root"):
        list_source(moved, regex)
    at_root = SourceSettings(patient_regex=r"([^/_]+)_\d", root=str(tmp_path))
    assert paths(list_source(moved, at_root)) == paths(listing)


def test_one_picture_with_two_questions_has_two_stable_ids(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines = [line(question="Describe<image>", answer=text, patient_id="P1") for text in ("clear", "normal heart")]
    ids = {piece.id for piece in list_source(conversation(tmp_path, *lines), SourceSettings()).studies[0].slices}
    again = list_source(conversation(tmp_path, *reversed(lines)), SourceSettings())
    assert len(ids) == 2 and ids == {piece.id for piece in again.studies[0].slices}
    with pytest.raises(UserError, match="twice"):
        list_source(conversation(tmp_path, lines[0], lines[0]), SourceSettings())


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ('{"image": "a.png"', "not valid JSON"),
        ("[1]", "not a JSON object"),
        (json.dumps({"image": "a.png", "patient_id": "P1"}), "no conversations"),
        (line("", patient_id="P1"), "no image"),
        (line(["a.png", "b.png"], patient_id="P1"), "2 images"),
        (line(answer="4", patient_id="P1"), "'4' is not among the choices 0|1"),
        (line(question="<cls>: 0|0.", patient_id="P1"), "choices"),
        (line(), "patient-regex"),
        (line(patient_id=[1]), "patient_id must be"),
        (json.dumps({"image": "a", "conversations": [{"from": "user", "value": "x"}]}), "from is 'user'"),
        (
            json.dumps({"image": "a", "patient": "P", "conversations": [{"from": "human", "value": "<cls>: 0|1."}]}),
            "no answer",
        ),
    ],
)
def test_broken_lines_are_named_together_with_file_and_line(tmp_path: Path, broken: str, named: str) -> None:
    path = conversation(tmp_path, line(patient_id="P1"), broken, "nonsense")
    with pytest.raises(UserError) as caught:
        list_source(path, SourceSettings())
    message = str(caught.value)
    assert "2 lines" in message and f"{path}:2: " in message and f"{path}:3: " in message and named in message


@pytest.mark.parametrize("image", ["/etc/a.png", "../a.png"])
def test_conversation_paths_that_leave_the_root_are_errors(tmp_path: Path, image: str) -> None:
    with pytest.raises(UserError, match=r"train.jsonl:1"):
        list_source(conversation(tmp_path, line(image, patient_id="P1")), SourceSettings())


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"a": 1}', '{"a": {"root": "."}}', '{"a": {"root": 1, "annotation": "x"}}']
)
def test_wrong_meta_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(UserError, match=r"meta.json"):
        list_source(tmp_path / "meta.json", SourceSettings())


# what is no file


@pytest.mark.parametrize("kind", ["auto", "csv", "conversations"])
def test_devices_and_pipes_are_refused_and_not_read_to_their_end(tmp_path: Path, kind: Any) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (Path("/dev/zero"), tmp_path / "pipe.csv"):
        with pytest.raises(UserError, match="neither a file nor a folder"):
            list_source(path, SourceSettings(format=kind))


def test_what_a_list_names_and_is_not_there_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    picture(tmp_path / "a.png")
    lines = "".join(f"{name},P{at},viral\n" for at, name in enumerate(["a.png", "gone.png", "folder.png", "lost.png"]))
    listing = list_source(table(tmp_path, f"image,patient_id,label\n{lines}"), SourceSettings())
    assert [refusal.reason for refusal in listing.refusals] == [
        "a symbolic link that leads nowhere",
        "not a regular file",
        "the file does not exist",
    ]


def test_what_is_wrong_is_grouped_by_reason_with_three_places_each() -> None:
    wrong = [(f"a:{line}", f"the path '../{line}.png' leaves the folder") for line in range(7)] + [("b:1", "no image")]
    assert by_reason(wrong) == [
        "a:0: the path '../0.png' leaves the folder",
        "a:1: the path '../1.png' leaves the folder",
        "a:2: the path '../2.png' leaves the folder",
        "... 7 such in all",
        "b:1: no image",
    ]


# real data


@pytest.mark.real
@needs_real
@pytest.mark.parametrize(("name", "patients", "slices"), [("lung_xray", 1722, 2556), ("lung_ct", 3, 77)])
def test_real_tables_list_as_they_are(name: str, patients: int, slices: int) -> None:
    listing = list_source(REAL / name, SourceSettings())
    assert (len(listing.studies), len(paths(listing)), listing.refusals) == (patients, slices, ())
    assert list_source(REAL / name / "labels.csv", SourceSettings()) == listing
    results = [result for study in listing.studies[:3] for _, result in load_study(listing.root, study, ImageSettings(64))]
    assert all(isinstance(result, np.ndarray) and result.shape == (64, 64, 1) for result in results)
