"""CSV files of reports: what is understood, what goes to the quarantine, and what is an error with its line."""

import json
from pathlib import Path

import pytest

from raymed.data.sources.listing import Listing
from raymed.errors import UserError
from raymed.systems.mamba_vlm.radfm import WHOLE, CaptionSettings, list_reports, read_prompts


def listed(path: Path, *roots: Path, prompts: tuple[str, ...] = (), **settings: object) -> Listing:
    return list_reports({WHOLE: path}, CaptionSettings(**settings), prompts, roots)


def csv(folder: Path, *lines: str, name: str = "reports.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_a_radfm_file_saved_by_excel_is_read_and_the_patient_is_the_case_of_the_file_name(tmp_path: Path) -> None:
    files(tmp_path, "0000978995_20260123_0000.nii.gz", "m.nii.gz")
    table = csv(
        tmp_path,
        "image_path,question,answer,mask_path",
        "0000978995_20260123_0000.nii.gz,有何所见?,右肺上叶空洞。,m.nii.gz",
        encoding="utf-8-sig",
    )
    [study] = listed(table).studies
    [report] = study.slices
    assert study.patient == "0000978995"
    assert [turn.text for turn in report.messages] == ["有何所见?", "右肺上叶空洞。"]
    assert (report.path, report.mask, report.where) == ("0000978995_20260123_0000.nii.gz", "m.nii.gz", "reports.csv:2")


@pytest.mark.parametrize("header", ["image,caption,patient_id", "Figure_path,Answer,PMC_id", "IMAGE_PATH,report,subject_id"])
def test_columns_are_known_by_their_usual_names(tmp_path: Path, header: str) -> None:
    files(tmp_path, "a.png")
    [study] = listed(csv(tmp_path, header, "a.png,Clear.,P7")).studies
    assert study.patient == "P7" and study.slices[0].messages[1].text == "Clear."


def test_radfms_own_root_is_put_before_the_pictures_path(tmp_path: Path) -> None:
    files(tmp_path, "figures/case/a.png")
    table = csv(tmp_path, "img_root_dir,Figure_path,Question,Answer", "figures/case,a.png,What?,Clear.")
    assert listed(table).studies[0].slices[0].path == "figures/case/a.png"
    outside = csv(tmp_path, "img_root_dir,Figure_path,Answer", "../elsewhere,a.png,Clear.", name="outside.csv")
    with pytest.raises(UserError, match="outside of the data folders"):
        listed(outside)


@pytest.mark.parametrize(
    ("report", "learned"),
    [
        ("左上肺见结节(IM12)，边界清。", "左上肺见结节，边界清。"),
        ("A nodule (SE3, IM 45-47) and a cyst (Im12、Im15).", "A nodule and a cyst."),
        ("空洞（图像 8）可见 (2 cm).", "空洞可见 (2 cm)."),
        ("Stage (IMA) of 12, image 3 is worst.", "Stage (IMA) of 12, image 3 is worst."),
    ],
)
def test_numbers_of_slices_are_not_learned_and_other_brackets_stay(tmp_path: Path, report: str, learned: str) -> None:
    files(tmp_path, "a.png")
    table = csv(tmp_path, "image,answer,patient_id", f'a.png,"{report}",A')
    listing = listed(table)
    assert listing.studies[0].slices[0].messages[1].text == learned
    assert bool(listing.notes) == (report != learned)
    assert listed(table, keep_slice_labels=True).studies[0].slices[0].messages[1].text == report


def test_an_id_is_a_file_below_root_with_or_without_its_ending(tmp_path: Path) -> None:
    files(tmp_path / "pictures", "17.nii.gz")
    table = csv(tmp_path, "序号,answer", "17,Clear.")
    assert listed(table, root=str(tmp_path / "pictures")).studies[0].slices[0].path == "pictures/17.nii.gz"
    with pytest.raises(UserError, match="say with --root in which folder"):
        listed(table)
    files(tmp_path / "pictures", "17.nii")
    with pytest.raises(UserError, match=r"17 stands for several files: 17\.nii\.gz, 17\.nii"):
        listed(table, root=str(tmp_path / "pictures"))


def test_an_empty_question_gets_a_prompt_that_does_not_change_when_lines_are_added(tmp_path: Path) -> None:
    files(tmp_path, *(f"{n}.png" for n in range(20)))
    lines = [f"{n}.png,,Report {n}.,P{n}" for n in range(20)]
    prompts = ("One?", "Two?", "Three?")

    def asked(table: Path) -> dict[str, str]:
        return {study.patient: study.slices[0].messages[0].text for study in listed(table, prompts=prompts).studies}

    few = asked(csv(tmp_path, "image,question,answer,patient_id", *lines[5:]))
    assert few.items() <= asked(csv(tmp_path, "image,question,answer,patient_id", *lines)).items()
    assert set(few.values()) == set(prompts)
    assert "nan" not in few.values()


def test_an_empty_answer_and_a_missing_file_are_refused_with_the_line_and_take_no_neighbour_along(tmp_path: Path) -> None:
    files(tmp_path, "a.png", "b.png")
    table = csv(
        tmp_path, "image,answer,mask,patient_id", "a.png,Clear.,,A", "b.png,,,B", "c.png,Gone.,,C", "b.png,Mask.,m.png,B"
    )
    listing = listed(table)
    assert [study.patient for study in listing.studies] == ["A"]
    assert [(refusal.where, refusal.patient, refusal.reason) for refusal in listing.refusals] == [
        ("reports.csv:3", "B", "the answer is empty"),
        ("reports.csv:4", "C", "the file does not exist"),
        ("reports.csv:5", "B", "the mask: the file does not exist"),
    ]


def test_a_line_that_stands_twice_is_refused(tmp_path: Path) -> None:
    files(tmp_path, "a.png")
    listing = listed(csv(tmp_path, "image,answer", "a.png,Clear.", "a.png,Clear."))
    assert [refusal.reason for refusal in listing.refusals] == ["the same as reports.csv:2"]


def test_missing_columns_are_errors_that_say_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'answer'; the columns are image, text\. .*--source\.columns\.answer"):
        listed(csv(tmp_path, "image,text", "a.png,Clear."))
    with pytest.raises(UserError, match=r"reports\.csv:1: no column image_path or image_id.*--columns\.image NAME"):
        listed(csv(tmp_path, "file,answer", "a.png,Clear."))


@pytest.mark.parametrize("path", ["../other/a.png", "d:/elsewhere/a.png", "/etc/passwd", "link/a.png"])
def test_a_path_that_leaves_the_data_folders_is_an_error(tmp_path: Path, path: str) -> None:
    files(tmp_path, "data/x.png", "other/a.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"1 of 1 lines cannot be used.*\n.*reports\.csv:2: the path"):
        listed(csv(tmp_path / "data", "image,answer", f"{path},Clear."))


def test_a_path_outside_of_the_csvs_folder_is_read_once_its_folder_is_named(tmp_path: Path) -> None:
    files(tmp_path, "data/x.png", "other/a.png")
    table = csv(tmp_path / "data", "image,answer", "../other/a.png,Clear.", f"{tmp_path}/other/a.png,Clear too.")
    listing = listed(table, root=str(tmp_path / "other"))
    assert [(study.study, len(study.slices)) for study in listing.studies] == [("other/a.png", 2)]
    assert listing.root == tmp_path


def test_patients_in_the_files_of_two_splits_are_a_leak_that_names_all_of_them(tmp_path: Path) -> None:
    files(tmp_path, "a.png", "b.png", "c.png")
    train = csv(tmp_path, "image,answer,patient_id", "a.png,One.,A", "b.png,Two.,B", "c.png,Three.,C", name="train.csv")
    val = csv(tmp_path, "image,answer,patient_id", "a.png,Other.,A", "c.png,Four.,C", name="val.csv")
    with pytest.raises(UserError, match=r"a leak: 2 patients .*A \(train\.csv:2 and val\.csv:2\), C \(train\.csv:4 and"):
        list_reports({"train": train, "val": val}, CaptionSettings(), (), ())


def test_two_files_are_the_split_and_one_is_none(tmp_path: Path) -> None:
    files(tmp_path, "a.png", "b.png")
    train = csv(tmp_path, "image,answer,patient_id", "a.png,One.,A", name="train.csv")
    val = csv(tmp_path, "image,answer,patient_id", "b.png,Two.,B", name="val.csv")
    assert list_reports({"train": train, "val": val}, CaptionSettings(), (), ()).splits == {"A": "train", "B": "val"}
    assert not listed(train).splits


@pytest.mark.parametrize("content", ["{", '{"other": ["a"]}', '{"caption_prompt": []}', '{"prompts": ["a", " "]}', '["a"]'])
def test_a_prompt_file_without_questions_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "prompt.json").write_text(content)
    with pytest.raises(UserError, match=r"prompt\.json"):
        read_prompts(tmp_path / "prompt.json")


@pytest.mark.parametrize("key", ["caption_prompt", "prompts"])
def test_both_keys_of_a_prompt_file_are_read(tmp_path: Path, key: str) -> None:
    (tmp_path / "prompt.json").write_text("\ufeff" + json.dumps({key: ["请描述。", " Describe. "]}), encoding="utf-8")
    assert read_prompts(tmp_path / "prompt.json") == ("请描述。", "Describe.")


def test_instructions_give_the_same_reports_as_a_csv(tmp_path: Path) -> None:
    files(tmp_path, "a.png")
    table = csv(tmp_path, "image,question,answer,patient_id", "a.png,What is seen?,Clear.,A")
    turns = [{"from": "human", "value": "<image>\nWhat is seen?"}, {"from": "gpt", "value": "Clear."}]
    entry = json.dumps({"image": "a.png", "conversations": turns, "patient_id": "A"})
    (tmp_path / "lines.jsonl").write_text(f"{entry}\n")
    (tmp_path / "list.json").write_text(f"[{entry}]")
    of_csv, *others = (listed(path) for path in (table, tmp_path / "lines.jsonl", tmp_path / "list.json"))
    for other in others:
        assert [(study.patient, study.slices[0].path, study.slices[0].messages) for study in other.studies] == [
            (study.patient, study.slices[0].path, study.slices[0].messages) for study in of_csv.studies
        ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": ["a.png", "b.png"]}, "2 <image> marks|0 <image> marks|2 pictures"),
        ({"conversations": [{"from": "human", "value": "Well?"}]}, "no answer"),
        ({"conversations": [{"from": "human", "value": "Well?"}, {"from": "gpt", "value": " "}]}, "an empty answer"),
    ],
)
def test_an_instruction_that_is_no_report_is_an_error_with_its_line(tmp_path: Path, changes: dict, reason: str) -> None:
    turns = [{"from": "human", "value": "Well?"}, {"from": "gpt", "value": "Clear."}]
    (tmp_path / "lines.jsonl").write_text(json.dumps({"image": "a.png", "conversations": turns} | changes))
    with pytest.raises(UserError, match=rf"lines\.jsonl:1: .*({reason})"):
        listed(tmp_path / "lines.jsonl")
