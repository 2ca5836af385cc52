"""Samples for pretraining: wrong lines are named all at once, right ones keep their text, pictures and patient."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raymed.data.record import Message
from raymed.data.sources.listing import Listing
from raymed.data.sources.sample import read_sample, with_marks
from raymed.data.sources.samples import SampleSettings, list_samples
from raymed.errors import UserError


def line(image: object = "a.png", question: str = "<image>\nWhat?", answer: str = "Clear.", **more: object) -> str:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({"conversations": turns, **({"image": image} if image else {}), **more}, ensure_ascii=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two data sets, `chest` with four lines and `text` with one, and pictures a and b."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("L", (8, 8), 100).save(tmp_path / "images" / f"{name}.png")
    lines = [
        line(patient_id="P1"),
        line(["a.png", "b.png"], "<image><image>Compare.", patient_id="P1"),
        "",
        line("b.png", "Describe<image>", patient=2),
        line("b.png", "Caption this.", "Lungs.", patient_id="P3", study="S"),
    ]
    (tmp_path / "chest.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "text.jsonl").write_text(line(None, "What is a lung?", patient_id="P1") + "\n", "utf-8")
    meta(tmp_path)
    return tmp_path


def meta(folder: Path, **chest: object) -> Path:
    entries = {
        "chest": {"root": "images", "annotation": "chest.jsonl", "data_augment": True, "repeat_time": 1} | chest,
        "text": {"root": ".", "annotation": "text.jsonl", "data_augment": False, "repeat_time": 2, "length": 1},
    }
    (folder / "meta.json").write_text(json.dumps(entries), "utf-8")
    return folder / "meta.json"


def listed(path: Path, **settings: Any) -> tuple[Listing, dict[str, dict[str, Any]]]:
    return list_samples(path, SampleSettings(**settings), most=6)


def wrong(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        listed(path, **settings)
    return str(caught.value)


def test_an_answer_among_declared_choices_loses_the_blanks_around_it_and_others_keep_theirs() -> None:
    asked = read_sample(line(question="<image>\n<cls>: no | yes .", answer=" yes\n").encode()).messages
    assert asked == (Message("human", "<image>\n<cls>: no | yes ."), Message("gpt", "yes"))
    assert read_sample(line(answer=" yes\n").encode()).messages[1].text == " yes\n"


def test_data_sets_give_samples_by_patient_and_study_and_say_how_they_are_used(folder: Path) -> None:
    listing, used = listed(folder / "meta.json")
    assert [(study.patient, study.study, len(study.slices)) for study in listing.studies] == [
        ("2", "chest/2", 1),
        ("P1", "chest/P1", 2),
        ("P1", "text/P1", 1),
        ("P3", "chest/S", 1),
    ]
    assert [piece.where for piece in listing.studies[1].slices] == ["chest.jsonl:1", "chest.jsonl:2"]
    assert (used["chest"]["lines"], used["chest"]["data_augment"], used["chest"]["max_dynamic_patch"]) == (4, True, 6)
    assert (used["text"]["lines"], used["text"]["repeat_time"], used["text"]["root"]) == (1, 2, ".")
    assert listing.notes[-1] == "1 of 5 samples have no picture" and listing.refusals == () and listing.patients_known


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ('{"image": "a.png"', "not valid JSON"),
        ("[1]", "not a JSON object"),
        (line(question="<image>\n<cls>: 0|1.", answer="2"), "conversations[0]: the answer '2' is not among the choices 0|1"),
        (
            line(question="<cls>：0|0。", answer="0"),
            "conversations[0]: the choices '0|0' must be at least two different texts",
        ),
        (json.dumps({"image": "a.png"}), "no conversations"),
        (line(question="<image><image>"), "2 <image> marks in human turns for 1 pictures"),
        (line(["a.png", "b.png"]), "1 <image> marks in human turns for 2 pictures"),
        (line(None), "1 <image> marks in human turns for 0 pictures"),
        (line(answer=" \n"), "conversations[1]: an empty answer"),
        (line().replace('"gpt"', '"assistant"'), "from is 'assistant'"),
        (line("../a.png"), "leaves the folder"),
        (line("/etc/a.png"), "absolute path"),
        (line([1]), "image must be"),
        (line(None, video="x.mp4"), "a video"),
        (line(question="<image><IMG_CONTEXT>"), "special token <IMG_CONTEXT>"),
        (line(patient_id=["x"]), "patient_id must be"),
        (line(patient_id="P9", study="S"), "study S is of P3 and of P9"),
        (line(None, question="What?", images=["a.png"]), "named under 'images'"),
        (line(answer="cut HERE").replace("HERE", r"\ud83d"), "half of a character"),
        (line(patient_id="HERE").replace("HERE", r"\ud83d"), "half of a character"),
    ],
)
def test_every_wrong_line_is_named_with_file_and_line_before_anything_is_done(folder: Path, broken: str, named: str) -> None:
    with (folder / "chest.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"\n{broken}\nnonsense\n")
    message = wrong(folder / "meta.json")
    assert "2 of" in message and "chest.jsonl:6: " in message and "chest.jsonl:7: not valid JSON" in message
    assert named in message.split("chest.jsonl:7")[0]


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("human",), "no answer (a turn from gpt) to learn from"),
        (("human", "gpt", "<cls>: 0|1."), "conversations[2]: the <cls> question has no answer"),
        (("human", "gpt", "human"), "conversations[2] has no answer"),
        (("human", "human", "gpt"), "conversations[1] is of human, where it is gpt's turn"),
        (("system", "gpt", "human", "gpt"), "conversations[1] is of gpt, where it is human's turn"),
        (("human", "gpt", "gpt"), "conversations[2] is of gpt, where it is human's turn"),
    ],
)
def test_a_dialogue_out_of_turn_goes_to_the_quarantine_by_its_line(
    folder: Path, roles: tuple[str, ...], reason: str
) -> None:
    turns = [
        {"from": "human", "value": role} if "<cls>" in role else {"from": role, "value": f"{role} {number}"}
        for number, role in enumerate(roles)
    ]
    with (folder / "text.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"conversations": turns}) + "\n")
    listing, used = listed(folder / "meta.json")
    assert [(each.where, each.reason) for each in listing.refusals] == [("text.jsonl:2", reason)]
    assert used["text"]["lines"] == 2, "counted, and no sample"


def test_a_line_that_is_not_utf_8_is_named(folder: Path) -> None:
    (folder / "text.jsonl").write_bytes(line(None, "Größe?").encode("latin-1"))
    assert "text.jsonl:1: not UTF-8" in wrong(folder / "meta.json")


def test_a_single_picture_without_a_mark_is_shown_before_the_first_human_turn() -> None:
    turns = (Message("system", "S"), Message("human", "Describe."), Message("gpt", "Clear."))
    assert with_marks(turns, 1)[1].text == "<image>\nDescribe."
    later = (
        Message("human", "Hello."),
        Message("gpt", "Yes?"),
        Message("human", "Describe <image>"),
        Message("gpt", "Clear."),
    )
    assert with_marks(later, 1) == later


texts = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(texts, min_size=1, max_size=4), st.integers(0, 4), st.booleans())
def test_turns_come_back_as_they_were_written_whatever_is_in_them(answers: list[str], pictures: int, escape: bool) -> None:
    turns = [{"from": "human", "value": "<image>" * pictures}]
    for answer in answers:
        turns += [{"from": "gpt", "value": f"a{answer}"}, {"from": "human", "value": answer}]
    images = [f"{number}.png" for number in range(pictures)]
    sample = read_sample(json.dumps({"image": images, "conversations": turns}, ensure_ascii=escape).encode())
    assert [(turn.role, turn.text) for turn in sample.messages] == [(turn["from"], turn["value"]) for turn in turns]
    assert sample.images == tuple(images)


def test_a_share_keeps_the_first_lines_and_says_so(folder: Path) -> None:
    listing, used = listed(meta(folder, repeat_time=0.6))
    assert used["chest"]["lines"] == 2
    assert [piece.where for study in listing.studies for piece in study.slices if study.source == "chest"] == [
        "chest.jsonl:1",
        "chest.jsonl:2",
    ]
    assert any("the first 2 of 4 lines (repeat_time 0.6)" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"repeat_time": 1.5}, "repeat_time is 1.5"),
        ({"repeat_time": 0}, "repeat_time is 0"),
        ({"repeat_time": True}, "repeat_time is True"),
        ({"repeat_time": 0.1}, "keeps none"),
        ({"data_augment": "yes"}, "data_augment is 'yes'"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0"),
        ({"annotation": "meta.json"}, "must end in jsonl"),
        ({"annotation": "gone.jsonl"}, "no file"),
    ],
)
def test_wrong_entries_of_a_meta_file_are_errors_that_name_the_key(folder: Path, entry: dict, named: str) -> None:
    assert named in wrong(meta(folder, **entry))


def test_unknown_keys_and_a_wrong_length_are_said(folder: Path) -> None:
    notes = "\n".join(listed(meta(folder, length=7, conv_style="x", max_dynamic_patch=12))[0].notes)
    assert "conv_style" in notes and "length says 7, the annotation has 4 lines" in notes


def test_an_array_becomes_lines_beside_it_and_is_not_written_over_something_else(folder: Path) -> None:
    (folder / "array.json").write_text(f"[{line(None, 'Why?')}, {line(None, 'How?')}]", "utf-8")
    for _ in range(2):
        listing, used = listed(folder / "array.json")
        assert used["array"]["lines"] == 2 and len((folder / "array.jsonl").read_text().splitlines()) == 2
        assert any("array.json is a JSON array" in note for note in listing.notes)
    (folder / "array.jsonl").write_text(line(None, "Other?"), "utf-8")
    assert "something else" in wrong(folder / "array.json")


def test_lost_pictures_and_repeated_lines_go_to_the_quarantine_with_their_reason(folder: Path) -> None:
    lines = [line(["images/a.png", "gone.png"], "<image><image>", patient_id="P1"), *[line(None, "Why?")] * 2]
    (folder / "more.jsonl").write_text("\n".join(lines), "utf-8")
    refusals = listed(folder / "more.jsonl")[0].refusals
    assert [(refusal.where, refusal.reason.split(";")[0]) for refusal in refusals] == [
        ("more.jsonl:1", "picture 2 of 2: the file does not exist"),
        ("more.jsonl:3", "the same as more.jsonl:2"),
    ]


def test_without_a_patient_a_picture_is_one_and_it_is_said(folder: Path) -> None:
    lines = [line("images/a.png", answer=text) for text in "xy"] + [line(None, "Why?")]
    (folder / "more.jsonl").write_text("\n".join(lines), "utf-8")
    listing, _ = listed(folder / "more.jsonl")
    assert [len(study.slices) for study in listing.studies if study.patient == "images/a.png"] == [2]
    assert len(listing.studies) == 2 and not listing.patients_known
    assert any("3 of 3 samples name no patient" in note for note in listing.notes)
    known, _ = listed(folder / "more.jsonl", patient_regex=r"images/(\w)")
    assert "a" in {study.patient for study in known.studies}
    assert "does not match" in wrong(folder / "more.jsonl", patient_regex=r"(\d+)")


def test_lines_added_in_front_leave_samples_and_studies_as_they_were(folder: Path) -> None:
    before = {study.study: study.fingerprint for study in listed(folder / "meta.json")[0].studies}
    text = (folder / "chest.jsonl").read_text("utf-8")
    (folder / "chest.jsonl").write_text(line("a.png", "New<image>", patient_id="P0") + "\n" + text, "utf-8")
    after = {study.study: study.fingerprint for study in listed(folder / "meta.json")[0].studies}
    assert after.pop("chest/P0") and after == before
    tiles = {study.study: study.fingerprint for study in listed(meta(folder, max_dynamic_patch=2))[0].studies}
    assert tiles["chest/P1"] != before["chest/P1"] and tiles["text/P1"] == before["text/P1"]


def test_a_table_of_pictures_and_texts_gives_questions_and_answers(folder: Path) -> None:
    path = folder / "images" / "captions.csv"
    path.write_text('image,caption,patient_id\na.png,"Clear,\nboth lungs",P1\n../images/b.png,Opacity,P2\n', "utf-8")
    listing, used = listed(path, question="Describe.", root=str(folder))
    first = listing.studies[0].slices[0]
    assert [turn.text for turn in first.messages] == ["<image>\nDescribe.", "Clear,\nboth lungs"]
    assert first.path == "images/a.png" and used["captions"]["lines"] == 2
    path.write_text("image,caption\n../../a.png,Clear\n", "utf-8")
    assert "captions.csv:2" in wrong(path)
    path.write_text("image,caption\na.png,\n", "utf-8")
    assert "captions.csv:2: text is empty" in wrong(path)


def test_texts_are_not_kept_in_memory(folder: Path) -> None:
    def peak(length: int) -> int:
        with (folder / "long.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(line(None, f"{number} {'x' * length}") + "\n" for number in range(400))
        tracemalloc.start()
        try:
            listed(folder / "long.jsonl")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(10_000) < peak(10) + 200_000, "400 texts of 10 kB each take 4 MB"
