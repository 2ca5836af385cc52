"""What a check shows and writes: the guide's lines, and nothing in the place of a text that is not there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_records import SIZE, records
from volume_files import CHEST, SIDE, write_nifti

from raymed.data.image import ImageSettings
from raymed.errors import UserError
from raymed.systems.mamba_vlm.check import Check, CheckOptions, _record
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import GenerationSettings
from raymed.systems.mamba_vlm.slices import Reading, SliceSettings

READING = Reading(ImageSettings(size=SIDE, window="minmax"))
RECIPE = ReportRecipe(Reading(ImageSettings(size=SIZE)))


@pytest.mark.parametrize("text", ["a nodule", ""])
def test_a_check_that_has_no_text_abstains_and_makes_none_up(tmp_path: Path, text: str) -> None:
    check = Check(records(1)[0], "case.nii.gz", text, RECIPE, ("a note",))
    shown = text or "(empty: the network abstains)"
    wanted = ["a note", "输入图像: case.nii.gz", "问题: What is there?", f"生成文本: {shown}", "参考: a nodule "]
    assert check.lines == wanted
    folder = check.write(tmp_path, GenerationSettings(), tmp_path / "last.pt")
    assert folder.name.startswith("run_") and len(folder.name) == len("run_YYYYmmdd_HHMMSS")
    assert (folder / "generated.txt").read_text() == f"{text}\n" and (folder / "slice.png").stat().st_size
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["abstained"] is (not text) and meta["notes"] == ["a note"]


def test_an_image_may_come_with_a_mask_and_the_slice_is_told(tmp_path: Path) -> None:
    recipe, volume = replace(RECIPE, reading=READING), write_nifti(tmp_path / "case.nii.gz")
    record, source, chosen = _record(CheckOptions(image=str(volume)), recipe, None)
    assert (source, chosen) == (str(volume), "slice 3 of 5 from the feet, the middle one") and len(record.images) == 1
    marked = np.zeros(CHEST.shape, np.int16)
    marked[3, :4, :4] = 1
    mask = write_nifti(tmp_path / "mask.nii.gz", hu=marked)
    record, _, chosen = _record(CheckOptions(image=str(volume), mask=str(mask)), recipe, None)
    assert chosen == "slice 4 of 5 from the feet, the one on which the mask is largest"
    assert [image.role for image in record.images] == ["input", "mask"]
    around = replace(recipe, reading=replace(READING, slices=SliceSettings(count=3)))
    assert (
        _record(CheckOptions(image=str(volume)), around, None)[2]
        == "slices 2 to 4 of 5 from the feet, around the middle one"
    )
    with pytest.raises(UserError, match="give both"):
        _record(CheckOptions(mask=str(mask)), recipe, None)


def test_the_first_validation_report_is_read_without_preparing_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        write_nifti(tmp_path / f"case{number}_20260123_0000.nii.gz")
        name = ("train", "val")[number]
        (tmp_path / f"{name}.csv").write_text(
            f"image_path,question,answer\ncase{number}_20260123_0000.nii.gz,Which?,Of {name}.\n"
        )
    (tmp_path / "paths.yaml").write_text("caption_csv_train: train.csv\ncaption_csv_val: val.csv\n")
    recipe = replace(RECIPE, reading=READING)
    record, source, chosen = _record(CheckOptions(paths="paths.yaml"), recipe, None)
    assert [message.text for message in record.messages] == ["Which?", "Of val."] and record.patient == "case1"
    assert source == f"{tmp_path}/case1_20260123_0000.nii.gz (val.csv:2)" and chosen.startswith("slice 3 of 5")
    assert not (tmp_path / "runs").exists()
