"""Lines of data sets: which are used and in which order, whose they are, who is held out, and what is refused and why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymed.data.sources import Listing
from raymed.data.sources.listing import SourceSettings
from raymed.errors import UserError
from raymed.systems.unimedvl.listing import list_sequences
from raymed.systems.unimedvl.mixture_config import MixtureConfig

TASK = "RadiologyReportDataset"


def picture(folder: Path, name: str, width: int = 24, height: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)


def line(*paths: str, question: str = "What?", output: str = "", **more: Any) -> str:
    images = [{"path": path, "height": 20, "width": 24} for path in paths]
    turns = [{"from": "human", "value": "<image>" * len(paths) + question}, {"from": "gpt", "value": f"Of {paths}."}]
    task = "image_to_image" if output else "image_understanding" if paths else "text_only"
    outputs = {"output_img": [{"path": output}]} if output else {}
    return json.dumps({"main_task_type": task, "input_img": images, "message": turns, **outputs, **more})


def config(tmp_path: Path, sets: dict[str, list[str]], **entry: Any) -> MixtureConfig:
    """A configuration of one class whose groups have one data set each, of these lines."""
    infos = {}
    for name, known in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(known) + "\n")
        infos[name] = {"data_dir": "images", "jsonl_path": f"{name}.jsonl"}
    (tmp_path / "images").mkdir(exist_ok=True)
    names = {name: [name] for name in sets}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"dataset_info": {TASK: infos}, TASK: {"dataset_names": names, **entry}}))
    return MixtureConfig.read(path)


def listed(made: MixtureConfig, **settings: Any) -> Listing:
    return list_sequences(made, SourceSettings(**settings))[0]


def texts(listing: Listing) -> list[str]:
    return sorted(piece.where for study in listing.studies for piece in study.slices)


def texts_only(count: int) -> list[str]:
    return [line(question=f"Question {number}?") for number in range(count)]


def test_blank_lines_are_skipped_and_lines_keep_their_numbers(tmp_path) -> None:
    listing = listed(config(tmp_path, {"train": [line(question="A?"), "", "   ", line(question="B?")]}))
    assert texts(listing) == ["train.jsonl:1", "train.jsonl:4"]


def test_start_and_end_name_lines_that_are_not_blank_after_shuffling(tmp_path) -> None:
    known = ["", *texts_only(20)]
    straight = texts(listed(config(tmp_path, {"train": known}, num_used_data={"train": [2, 5]})))
    assert straight == ["train.jsonl:4", "train.jsonl:5", "train.jsonl:6"]
    shuffled = {"num_used_data": {"train": [0, 5]}, "shuffle_lines": True}
    one, same, other = (
        texts(listed(config(tmp_path, {"train": known}, shuffle_seed=seed, **shuffled))) for seed in (42, 42, 43)
    )
    assert one == same != other and len(one) == len(other) == 5


def test_groups_called_val_and_test_are_held_out(tmp_path) -> None:
    for name in "abc":
        picture(tmp_path / "images", f"{name}.png")
    sets = {"train": [line("a.png", patient_id="A")], "val": [line("b.png", patient_id="B")], "test": [line("c.png")]}
    listing = listed(config(tmp_path, sets))
    assert listing.splits == {"A": "train", "B": "val", "images/c.png": "test"}


def test_a_patient_who_is_trained_on_and_held_out_is_an_error_that_names_both_sets(tmp_path) -> None:
    picture(tmp_path / "images", "a.png")
    sets = {"train": [line("a.png", patient_id="A")], "val": [line("a.png", patient_id="A", question="Else?")]}
    with pytest.raises(UserError, match=f"A .{TASK}/train/train and {TASK}/val/val"):
        listed(config(tmp_path, sets))


def test_lines_that_share_a_picture_are_one_patient_where_none_is_named(tmp_path) -> None:
    for name in "abcd":
        picture(tmp_path / "images", f"{name}.png")
    known = [line("b.png", output="c.png"), line("c.png", output="a.png"), line("d.png"), line(question="Nobody?")]
    listing = listed(config(tmp_path, {"train": known}))
    patients = sorted({study.patient for study in listing.studies if "/" not in study.patient.removeprefix("images/")})
    assert patients == ["images/a.png", "images/d.png"] and not listing.patients_known


def test_a_regular_expression_finds_patients_in_paths(tmp_path) -> None:
    for name in ("patient_001_cxr.png", "patient_002_cxr.png"):
        picture(tmp_path / "images", name)
    known = [line("patient_001_cxr.png"), line("patient_002_cxr.png")]
    listing = listed(config(tmp_path, {"train": known}), patient_regex=r"patient_(\d+)")
    assert [study.patient for study in listing.studies] == ["001", "002"] and listing.patients_known


def test_every_line_that_cannot_be_used_is_refused_by_file_and_line(tmp_path) -> None:
    picture(tmp_path / "images", "a.png")
    (tmp_path / "secret.png").write_bytes(b"")
    known = [
        line("a.png"),
        "{",
        line("a.png", question=""),
        line("lost.png"),
        line("../secret.png"),
        line("a.png", message=[{"from": "human", "value": "<image>Only asked."}]),
    ]
    listing = listed(config(tmp_path, {"train": known}))
    refused = {refusal.where: refusal.reason for refusal in listing.refusals}
    assert texts(listing) == ["train.jsonl:1"]
    assert sorted(refused) == [f"train.jsonl:{number}" for number in range(2, 7)]
    for number, reason in ((2, "not valid JSON"), (3, "no human text"), (4, "does not exist"), (5, "leaves the folder")):
        assert reason in refused[f"train.jsonl:{number}"]
    assert "nothing to learn" in refused["train.jsonl:6"]


def test_a_leading_slash_belongs_to_the_data_folder(tmp_path) -> None:
    picture(tmp_path / "images" / "deep", "a.png")
    assert texts(listed(config(tmp_path, {"train": [line("/deep/a.png")]}))) == ["train.jsonl:1"]


def test_sizes_that_are_not_those_of_the_file_are_counted_and_told(tmp_path) -> None:
    picture(tmp_path / "images", "a.png")
    picture(tmp_path / "images", "b.png", width=30)
    made = config(tmp_path, {"train": [line("a.png"), line("b.png")]})
    listing, counts = list_sequences(made, SourceSettings())
    assert any("1 lines state another size" in note and "train.jsonl:2" in note for note in listing.notes)
    assert counts == {
        f"{TASK}/train/train": {
            "lines": 2, "used": 2, "refused": 0, "human": 2, "gpt": 2, "vit": 2, "vae": 0, "target": 0,
        }
    }  # fmt: skip


def test_drawing_without_dropping_conditions_is_told_and_can_be_changed(tmp_path) -> None:
    for name in "ab":
        picture(tmp_path / "images", f"{name}.png")
    sets = {"train": [line("a.png", output="b.png")]}
    told = "leaves no condition out"
    assert any(told in note and f"{TASK}/train" in note for note in listed(config(tmp_path, sets)).notes)
    assert not any(told in note for note in listed(config(tmp_path, sets, cfg_dropout=True)).notes)


@pytest.mark.parametrize(
    ("lost", "reason"),
    [("train.jsonl", "the data set train has no file"), ("images", "the data set train has no folder")],
)
def test_a_data_set_without_its_files_is_named(tmp_path, lost, reason) -> None:
    made = config(tmp_path, {"train": texts_only(1)})
    (tmp_path / lost).rename(tmp_path / "moved")
    with pytest.raises(UserError, match=reason):
        listed(made)


def test_a_data_set_of_which_no_line_is_used_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="the data set train has 0 lines"):
        listed(config(tmp_path, {"train": [""]}))
    with pytest.raises(UserError, match=r"has 2 lines .*num_used_data \[5, 9\] names none"):
        listed(config(tmp_path, {"train": texts_only(2)}, num_used_data={"train": [5, 9]}))
